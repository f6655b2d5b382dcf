"""Connections to PostgreSQL that are not let in, or that do not trust the server themselves."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from airflow.sdk import Connection

from bluegreen.exceptions import RefusedError, UnreachableError
from bluegreen.hooks.postgres import MemberSql

YES, NO = b"S", b"N"


@pytest.fixture
def server() -> Iterator[Callable[[bytes], int]]:
    """Starts a server that answers libpq's request for TLS with one byte, and tells its port."""
    listeners = []

    def start(answer: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer), daemon=True).start()
        return int(listener.getsockname()[1])

    def serve(listener: socket.socket, answer: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(8)
                connection.sendall(answer)
                connection.recv(1024)

    yield start
    for listener in listeners:
        # Closing alone does not wake the thread that waits in accept().
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def member(port: int, **extra: str) -> MemberSql:
    connection = Connection(
        conn_id="orders_postgres", conn_type="postgres", login="u", password="hunter2", extra=json.dumps(extra)
    )
    return MemberSql(connection, "n1", "127.0.0.1", port)


def test_a_server_without_tls_is_refused_where_the_connection_wants_it(server: Callable[[bytes], int]) -> None:
    with member(server(NO), sslmode="verify-full") as sql, pytest.raises(RefusedError) as caught:
        sql.rows("identity")
    assert "does not support SSL" in str(caught.value) and "'orders_postgres'" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_ca_file_that_is_not_there_is_refused(server: Callable[[bytes], int]) -> None:
    extra = {"sslmode": "verify-full", "sslrootcert": "/absent/ca.pem"}
    with member(server(YES), **extra) as sql, pytest.raises(RefusedError, match=r"/absent/ca\.pem"):
        sql.rows("identity")


def test_a_connection_that_breaks_may_be_tried_again(server: Callable[[bytes], int]) -> None:
    with member(server(YES), sslmode="require") as sql, pytest.raises(UnreachableError):
        sql.rows("identity")
