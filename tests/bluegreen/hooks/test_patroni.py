"""Patroni's REST API, as servers on loopback answer it: truly, badly, or not to an end."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab.certificates import Authority, Pair

from bluegreen.clusters import Cluster
from bluegreen.exceptions import BluegreenError, FailedForNowError, RefusedError, UnreachableError
from bluegreen.hooks import patroni
from bluegreen.hooks.patroni import PatroniHook, base_url

TOPOLOGY = {
    "members": [
        {"name": "n1", "role": "leader", "state": "running", "host": "h", "port": 5432, "timeline": 1, "api_url": "x"}
    ],
    "scope": "orders",
}

Answer = Callable[[socket.socket, bytes], None]


class Server:
    """One that answers each connection with what a test gives it.

    :param tls: its certificate and whose clients it wants, where it speaks TLS.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.requests: list[bytes] = []
        self.answer: Answer = plain(200, "{}")
        self.stopped = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.stopped.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        if self.tls:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                part = connection.recv(65536)
                if not part:
                    return
                request += part
            head, _, body = request.partition(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ),
                0,
            )
            while len(body) < length:
                body += connection.recv(65536)
            self.requests.append(head + b"\r\n\r\n" + body)
            try:
                self.answer(connection, request)
            except OSError:
                return

    def close(self) -> None:
        self.stopped.set()
        # Closing alone does not wake the thread that waits in accept().
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def raw(content: bytes) -> Answer:
    return lambda connection, _: connection.sendall(content)


def plain(status: int, body: str | bytes, more: str = "") -> Answer:
    content = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\nConnection: close\r\n{more}\r\n"
    return raw(head.encode() + content)


def trickle(begin: bytes, part: bytes, pause: float) -> Answer:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(begin)
        for _ in range(1000):
            connection.sendall(part)
            time.sleep(pause)

    return answer


def silent(connection: socket.socket, _: bytes) -> None:
    time.sleep(30)


def endless(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patroni, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(patroni, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(patroni, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(patroni, "LEAST_SECONDS", 0.3)
    # A default is bound where the method is defined.
    monkeypatch.setitem(PatroniHook.request.__kwdefaults__, "read_seconds", 0.5)


def hook(*urls: str, conn_id: str | None = None) -> PatroniHook:
    return PatroniHook(
        Cluster(name="orders", patroni=list(urls), patroni_conn_id=conn_id, postgres_conn_id="pg", ssh_conn_id="ssh")
    )


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BAD_ANSWERS: dict[str, Answer] = {
    "nothing": raw(b""),
    "silence": silent,
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "binary": raw(bytes(range(256)) * 10),
    "half a head": raw(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "half a body": raw(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"members": ['),
    "half a chunk": raw(CHUNKED + b'ff\r\n{"members"'),
    "a chunk of no size": raw(CHUNKED + b"zz\r\n{}\r\n"),
    "a wrong length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}"),
    "a false encoding": plain(200, "{}", "Content-Encoding: gzip\r\n"),
    "no answer's body": plain(200, ""),
    "a page": plain(200, "<html>Welcome to nginx</html>"),
    "half of the JSON": plain(200, '{"members": [{"name": "n1"'),
    "deep JSON": plain(200, "[" * 100_000),
    "a large number": plain(200, "9" * 10_000),
    "not UTF-8": plain(200, b"\xff\xfe"),
    "a list": plain(200, "[]"),
    "a text": plain(200, '"running"'),
    "null": plain(200, "null"),
    "no members": plain(200, '{"members": []}'),
    "members of another kind": plain(200, '{"members": {"n1": "leader"}}'),
    "a redirect": plain(302, "", "Location: http://127.0.0.1:1/\r\n"),
    "an error": plain(500, json.dumps(TOPOLOGY)),
    "a health check's no": plain(503, json.dumps(TOPOLOGY)),
    "too much": endless,
    "a large body": plain(200, b"x" * (patroni.ANSWER_LIMIT_BYTES + 1)),
    "a bomb": plain(200, gzip.compress(b" " * (3 * patroni.ANSWER_LIMIT_BYTES)), "Content-Encoding: gzip\r\n"),
    "a head that trickles": trickle(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n", 0.1),
    "a body that trickles": trickle(CHUNKED, b"1\r\n \r\n", 0.1),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_bad_answer_ends_in_one_sentence_within_its_time(server: Server, kind: str) -> None:
    server.answer = BAD_ANSWERS[kind]
    started = time.monotonic()
    with hook(server.url) as api, pytest.raises(UnreachableError) as caught:
        api.topology()
    assert time.monotonic() - started < 4
    message = str(caught.value)
    assert message.startswith("no Patroni of cluster 'orders' answers: ") and server.url in message
    assert "\n" not in message and len(message) < 600


@pytest.mark.parametrize("kind", ["too much", "a large body"])
def test_an_answer_that_is_too_large_is_cut_off_for_its_size(server: Server, kind: str) -> None:
    server.answer = BAD_ANSWERS[kind]
    with hook(server.url) as api, pytest.raises(FailedForNowError, match=r"answered more than \d+ bytes"):
        api.request("GET", server.url)


def test_slow_ones_together_take_no_longer_than_one(server: Server) -> None:
    server.answer = BAD_ANSWERS["a head that trickles"]
    started = time.monotonic()
    with hook(server.url, server.url + "/", server.url) as api, pytest.raises(UnreachableError, match="did not end"):
        api.topology()
    assert time.monotonic() - started < 2 * patroni.LOOK_SECONDS


def test_the_first_member_that_answers_well_is_believed(server: Server) -> None:
    bad, good = server, Server()
    bad.answer = plain(200, "<html>")
    good.answer = plain(200, json.dumps(TOPOLOGY))
    with hook(closed_port(), bad.url, good.url + "/") as api:
        assert api.topology().leader.name == "n1"
    good.close()
    assert good.requests[0].startswith(b"GET /cluster HTTP/1.1\r\n")


def test_when_nobody_answers_each_reason_is_given(server: Server) -> None:
    server.answer = plain(500, "")
    down = closed_port()
    with hook(down, server.url) as api, pytest.raises(UnreachableError) as caught:
        api.topology()
    assert f"{down}/cluster does not answer" in str(caught.value)
    assert f"{server.url}/cluster answered 500; expected 200" in str(caught.value)


def test_a_proxy_of_the_environment_is_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, closed_port())
    server.answer = plain(200, json.dumps(TOPOLOGY))
    with hook(server.url) as api:
        assert api.topology().scope == "orders"


@pytest.mark.parametrize("status", [200, 503])
def test_a_member_tells_of_itself_whatever_its_role(server: Server, status: int) -> None:
    server.answer = plain(status, '{"state": "running", "tags": {"nosync": true}}')
    with hook(server.url) as api:
        assert api.member_status(server.url + "/patroni")["tags"] == {"nosync": True}
    assert server.requests[0].startswith(b"GET /patroni HTTP/1.1\r\n")


@pytest.mark.parametrize("body", ["[]", "null", '"x"', "1"])
@pytest.mark.parametrize("call", ["member_status", "dynamic_config"])
def test_what_is_no_mapping_is_no_answer(server: Server, call: str, body: str) -> None:
    server.answer = plain(200, body)
    with hook(server.url) as api, pytest.raises(FailedForNowError, match="no mapping"):
        getattr(api, call)(server.url + "/patroni")


def test_the_dynamic_configuration_is_read_and_written(server: Server) -> None:
    config = {"ttl": 30, "postgresql": {"parameters": {"a": "é"}}}
    server.answer = plain(200, json.dumps(config))
    with hook(server.url) as api:
        assert api.dynamic_config(server.url + "/patroni") == config
        api.replace_dynamic_config(server.url + "/patroni", config)
    head, _, body = server.requests[1].partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /config HTTP/1.1\r\n") and json.loads(body) == config


def test_a_configuration_that_is_not_taken_fails(server: Server) -> None:
    server.answer = plain(409, "no")
    with hook(server.url) as api, pytest.raises(FailedForNowError, match="answered 409"):
        api.replace_dynamic_config(server.url, {})


@pytest.mark.parametrize("status", [200, 202])
def test_a_reload_is_asked_for(server: Server, status: int) -> None:
    server.answer = plain(status, "reload scheduled")
    with hook(server.url) as api:
        api.reload(server.url + "/patroni")
    assert server.requests[0].startswith(b"POST /reload HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, RefusedError),
        (403, RefusedError),
        (500, FailedForNowError),
        (503, FailedForNowError),
        (301, FailedForNowError),
    ],
)
def test_a_reload_that_is_not_taken_is_told(server: Server, status: int, error: type[BluegreenError]) -> None:
    server.answer = plain(status, "no")
    with hook(server.url) as api, pytest.raises(error, match=f"answered {status}") as caught:
        api.reload(server.url)
    assert type(caught.value) is error


def test_a_health_check_gives_its_status_and_silence_is_no_health(server: Server) -> None:
    server.answer = plain(503, "{}")
    with hook(server.url) as api:
        assert api.health(server.url + "/patroni", "primary") == 503
        assert api.health(closed_port(), "primary") == 0
        assert api.health("http://[::1", "primary") == 0


def test_user_and_password_come_from_the_connection_and_are_in_no_message(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_ORDERS_REST", json.dumps({"conn_type": "http", "login": "ada", "password": "hunter2"})
    )
    server.answer = plain(401, "no")
    with hook(server.url, conn_id="orders_rest") as api, pytest.raises(RefusedError) as caught:
        api.reload(server.url)
    assert b"Basic " + b64encode(b"ada:hunter2") in server.requests[0]
    assert "hunter2" not in str(caught.value)


@dataclass(frozen=True)
class Tls:
    """Patroni's authority, and the files of a connection that fits it."""

    folder: Path
    authority: Authority

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def context(self, own: Pair) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self.authority.certificate)
        context.load_cert_chain(self.file("server.pem", own.certificate + own.key))
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def extra(self, **changes: str) -> dict[str, str]:
        client = self.authority.issue("bluegreen")
        fits = {
            "verify": self.file("ca.pem", self.authority.certificate),
            "cert": self.file("client.pem", client.certificate),
            "key": self.file("client.key", client.key),
        }
        return {name: value for name, value in {**fits, **changes}.items() if value}


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path, Authority.create("patroni"))


def ask_over_tls(tls: Tls, own: Pair, extra: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_ORDERS_REST", json.dumps({"conn_type": "http", "extra": extra}))
    server = Server(tls.context(own))
    server.answer = plain(200, json.dumps(TOPOLOGY))
    try:
        with hook(server.url, conn_id="orders_rest") as api:
            return api.topology().scope
    finally:
        server.close()


def test_a_certificate_of_the_connections_ca_and_a_client_certificate_are_accepted(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_over_tls(tls, tls.authority.issue("127.0.0.1"), tls.extra(), monkeypatch) == "orders"


@pytest.mark.parametrize("what", ["another CA", "another name", "no CA", "no client", "a client of another CA"])
def test_a_certificate_that_does_not_fit_is_refused_by_name(
    tls: Tls, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    other = Authority.create("other")
    stranger = other.issue("bluegreen")
    changes, words = {
        "another CA": ({"verify": tls.file("other.pem", other.certificate)}, "CERTIFICATE_VERIFY_FAILED"),
        "another name": ({}, "IP address mismatch"),
        "no CA": ({"verify": ""}, "CERTIFICATE_VERIFY_FAILED"),
        "no client": ({"cert": "", "key": ""}, "CERTIFICATE_REQUIRED"),
        "a client of another CA": (
            {"cert": tls.file("stranger.pem", stranger.certificate + stranger.key), "key": ""},
            "UNKNOWN_CA",
        ),
    }[what]
    own = tls.authority.issue("127.0.0.2" if what == "another name" else "127.0.0.1")
    with pytest.raises(RefusedError) as caught:
        ask_over_tls(tls, own, tls.extra(**changes), monkeypatch)
    message = str(caught.value)
    assert message.startswith("no Patroni of cluster 'orders' can be asked: ") and words in message
    assert "patroni_conn_id (orders_rest)" in message and "\n" not in message and len(message) < 600


def test_a_member_whose_certificate_does_not_fit_does_not_hide_one_that_answers(
    server: Server, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ORDERS_REST", json.dumps({"conn_type": "http", "extra": tls.extra()}))
    server.answer = plain(200, json.dumps(TOPOLOGY))
    bad = Server(tls.context(tls.authority.issue("127.0.0.2")))
    with hook(bad.url, server.url, conn_id="orders_rest") as api:
        assert api.topology().scope == "orders"
    bad.close()


@pytest.mark.parametrize("status", [200, 400, 503])
def test_access_is_proven_by_a_change_of_nothing(server: Server, status: int) -> None:
    server.answer = plain(status, "")
    with hook(server.url) as api:
        api.require_access(server.url + "/patroni")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"PATCH /config HTTP/1.1\r\n") and body == b"{}"


@pytest.mark.parametrize("call", ["require_access", "reload", "restart", "replace_dynamic_config"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_change_that_is_not_allowed_is_refused(server: Server, call: str, status: int) -> None:
    server.answer = plain(status, "wrong password")
    more = [{"ttl": 30}] if call == "replace_dynamic_config" else []
    with hook(server.url) as api, pytest.raises(RefusedError, match=rf"answered {status} .*patroni_conn_id \(none is"):
        getattr(api, call)(server.url, *more)


@pytest.mark.parametrize(
    "connection", [None, {"conn_type": "http", "extra": {"verify": "/absent/ca.pem"}}, {"extra": {"cert": "/absent"}}]
)
def test_a_connection_that_cannot_be_used_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, connection: dict[str, Any] | None, airflow_db: None
) -> None:
    if connection is not None:
        monkeypatch.setenv("AIRFLOW_CONN_ORDERS_REST", json.dumps({"conn_type": "http", **connection}))
    with hook("http://127.0.0.1:1", conn_id="orders_rest") as api, pytest.raises(RefusedError, match="orders_rest"):
        api.topology()


@pytest.mark.parametrize(
    ("api_url", "base"),
    [
        ("http://10.0.0.1:8008/patroni", "http://10.0.0.1:8008"),
        ("https://n1.example:8008/patroni", "https://n1.example:8008"),
        ("http://[fd00::1]:8008/patroni", "http://[fd00::1]:8008"),
    ],
)
def test_the_base_of_a_members_address(api_url: str, base: str) -> None:
    assert base_url(api_url) == base


@pytest.mark.parametrize("api_url", ["", "nonsense", "http://[::1", "ftp://x/patroni", "http://\x00/", "http://h:0/x"])
def test_an_address_that_is_none_fails_for_now(api_url: str) -> None:
    with hook("http://127.0.0.1:1") as api, pytest.raises(FailedForNowError):
        api.member_status(api_url)


def test_user_and_password_do_not_go_from_https_to_http(server: Server) -> None:
    with pytest.raises(RefusedError, match="the registry says https://"):
        hook("https://127.0.0.1:1").member_status(f"{server.url}/patroni")
    assert server.requests == []
