"""A client that writes and reads through HAProxy all the time, and what it has seen."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psycopg

WRITE_EVERY_SECONDS = 0.05
READ_EVERY_SECONDS = 0.1
# the server's clock says when the mark was taken, and the transaction id was taken a moment later
CLOCK_SECONDS = 0.5
SEEN = "select n, host(inet_server_addr()) from traffic.writes"
TABLE = """
drop schema if exists traffic cascade;
create schema traffic;
create table traffic.writes (n bigint primary key)
"""


@dataclass
class Attempt:
    """One write or read.

    :param begin: seconds since the epoch.
    :param kind: `write`, or of which reader it is.
    :param rows: what a read has seen.
    :param server: the address of the server that a read has reached.
    """

    begin: float
    end: float
    n: int = 0
    error: str = ""
    rows: frozenset[int] = frozenset()
    server: str = ""
    kind: str = "write"

    def __str__(self) -> str:
        """What became of it, for a sentence."""
        return f"{self.kind}, after {self.end - self.begin:.1f} s: {self.error or 'well'}"


@dataclass
class Endpoint:
    """One connection through HAProxy, made anew after each error.

    :param keep: whether it is kept from one statement to the next.
    """

    port: int
    password: str
    keep: bool = True
    connection: psycopg.Connection[Any] | None = field(default=None, repr=False)

    def execute(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own."""
        try:
            if self.connection is None:
                self.connection = psycopg.connect(
                    host="127.0.0.1",
                    port=self.port,
                    user="release",
                    password=self.password,
                    dbname="app",
                    connect_timeout=2,
                    autocommit=True,
                    application_name="traffic",
                    options="-c statement_timeout=3s",
                )
            cursor = self.connection.execute(query.encode(), parameters)
            found = cursor.fetchall() if cursor.description else []
        except psycopg.Error:
            self.close()
            raise
        if not self.keep:
            self.close()
        return found

    def close(self) -> None:
        """Forget the connection."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class Traffic:
    """Writes through the leader's port, reads through both, from entry to exit.

    A reader keeps its connection, as a pool does, and with it its server; one more connects anew for each read, and so
    comes to every replica.

    :param password: of the role ``release``.
    """

    def __init__(self, leader_port: int, replica_port: int, password: str) -> None:
        self.leader_port, self.replica_port, self.password = leader_port, replica_port, password
        self.writes: list[Attempt] = []
        self.reads: dict[str, list[Attempt]] = {"leader": [], "replica": [], "any replica": []}
        self._end = threading.Event()
        self._threads = [
            threading.Thread(name="writer", target=self._write, daemon=True),
            *(
                threading.Thread(name=f"reader of the {kind}", target=self._read, args=(kind, port, keep), daemon=True)
                for kind, port, keep in (
                    ("leader", leader_port, True),
                    ("replica", replica_port, True),
                    ("any replica", replica_port, False),
                )
            ),
        ]
        self.silent: list[str] = []

    def __enter__(self) -> Self:
        setup = Endpoint(self.leader_port, self.password)
        setup.execute(TABLE)
        setup.close()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        died = [thread for thread in self._threads if not thread.is_alive()]
        self._end.set()
        for thread in self._threads:
            thread.join(15)
        self.silent = [thread.name for thread in self._threads if thread in died or thread.is_alive()]

    def _write(self) -> None:
        endpoint = Endpoint(self.leader_port, self.password)
        n = 0
        while not self._end.wait(WRITE_EVERY_SECONDS):
            n += 1
            self.writes.append(_attempt(endpoint, "insert into traffic.writes values (%s)", n))

    def _read(self, kind: str, port: int, keep: bool) -> None:
        endpoint = Endpoint(port, self.password, keep)
        while not self._end.wait(READ_EVERY_SECONDS):
            self.reads[kind].append(_attempt(endpoint, SEEN, kind=f"read of the {kind}"))

    def errors(self, begin: float, end: float) -> list[Attempt]:
        """Writes and reads that failed, and of which some part lies between two moments."""
        attempts = [one for kind in (self.writes, *self.reads.values()) for one in kind]
        return [one for one in attempts if one.error and one.end >= begin and one.begin <= end]

    def interruptions(self, begin: float, end: float) -> list[tuple[float, float]]:
        """Spans without a successful write around failed ones: from the last success to the next."""
        found, last, failed = [], begin, False
        for one in self.writes:
            if one.begin < begin or one.begin > end:
                continue
            if one.error:
                failed = True
                continue
            if failed:
                found.append((last, one.end))
            last, failed = one.end, False
        if failed:
            found.append((last, end))
        return found

    def kept(self) -> frozenset[int]:
        """The rows that are there now."""
        endpoint = Endpoint(self.leader_port, self.password, keep=False)
        return frozenset(n for (n,) in endpoint.execute("select n from traffic.writes"))

    def faults(self, mark: float, done: float, kept: frozenset[int], replicas: int) -> list[str]:
        """What a client must never see of a rollback.

        :param mark: when the mark was taken, in seconds since the epoch.
        :param done: when the rollback was reported done.
        :param kept: the rows that were there after the last attempt.
        :param replicas: how many members new connections for reads must have come to after the rollback.
        """
        good = [one for one in self.writes if not one.error]
        found = []
        lost = [one for one in good if one.n not in kept]
        if early := [one.n for one in lost if one.end < mark]:
            found.append(f"{len(early)} writes from before the mark are lost, the first is {early[0]}")
        spans = self.interruptions(mark, done)
        if len(spans) != 1:
            found.append(f"{len(spans)} interruptions, expected one: {[f'{b - a:.1f} s' for a, b in spans]}")
        else:
            begin = spans[0][0]
            if late := [one.n for one in lost if one.begin > begin]:
                found.append(f"{len(late)} writes from after the interruption are lost, the first is {late[0]}")
            between = [one.n for one in good if one.begin > mark + CLOCK_SECONDS and one.end <= begin]
            if survived := [n for n in between if n in kept]:
                found.append(f"{len(survived)} writes from after the mark are still there, the first is {survived[0]}")
        if not any(one.begin > done for one in good):
            found.append("nothing was written after the rollback was reported done")
        if self.silent:
            found.append(f"the client's {', '.join(self.silent)} did not go on to the end")
        if not lost:
            found.append("no write was discarded, so this rollback proves nothing")
        if errors := [one for one in self.errors(done, float("inf")) if one.begin > done]:
            found.append(f"{len(errors)} errors after the rollback was reported done, the first: {errors[0]}")
        for kind, reads in self.reads.items():
            after = [one for one in reads if one.begin > done and not one.error]
            if not any(one.rows for one in after):
                found.append(f"nothing was read through the {kind}'s port after the rollback")
            # what was committed there and never acknowledged counts as well
            if wrong := [one for one in after if one.rows - kept]:
                found.append(f"{len(wrong)} reads of the {kind} saw discarded rows after the rollback")
            if kind == "any replica" and len(servers := {one.server for one in after} - {""}) != replicas:
                found.append(f"after the rollback reads came to {sorted(servers)}, expected {replicas} replicas")
        return found


def _attempt(endpoint: Endpoint, query: str, n: int = 0, kind: str = "write") -> Attempt:
    begin = time.time()
    try:
        rows = endpoint.execute(query, (n,) if n else ())
    except psycopg.Error as error:
        return Attempt(begin, time.time(), n, " ".join(str(error).split()) or type(error).__name__, kind=kind)
    return Attempt(begin, time.time(), n, "", frozenset(row[0] for row in rows), rows[0][1] if rows else "", kind)
