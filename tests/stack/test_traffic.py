"""The judge of what a client has seen: each thing that must never be is found."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from lab.compose.traffic import Attempt, Traffic

MARK, CUT, BACK, DONE, END = 100.0, 110.0, 120.0, 130.0, 140.0
SERVERS = ("10.0.0.1", "10.0.0.2")


def seen() -> tuple[Traffic, frozenset[int]]:
    """A rollback as it should be: ten writes a second, each second of outage ten errors; and the rows kept."""
    traffic = Traffic(1, 2, "")
    kept: set[int] = set()
    for n in range(1, 500):
        begin = 90 + n / 10
        failed = CUT <= begin < BACK
        traffic.writes.append(Attempt(begin, begin + 0.01, n, "no connection" if failed else ""))
        if not failed and not MARK <= begin < CUT:
            kept.add(n)
        before = frozenset(one.n for one in traffic.writes if not one.error and (begin < BACK or one.n in kept))
        for kind, reads in traffic.reads.items():
            server = SERVERS[n % 2] if kind == "any replica" else SERVERS[0]
            reads.append(Attempt(begin, begin + 0.02, 0, "gone" if failed else "", before, server))
    return traffic, frozenset(kept)


def test_a_good_rollback_has_no_fault() -> None:
    traffic, kept = seen()
    assert traffic.faults(MARK, DONE, kept, 2) == []
    assert [round(b - a) for a, b in traffic.interruptions(MARK, DONE)] == [10]
    assert traffic.errors(0, MARK) == []


def change(attempts: list[Attempt], at: float, **values: object) -> Attempt:
    """Change the first attempt from this moment on; return it."""
    index = next(i for i, one in enumerate(attempts) if one.begin >= at)
    attempts[index] = replace(attempts[index], **values)  # type: ignore[arg-type]
    return attempts[index]


def lose(traffic: Traffic, kept: frozenset[int], at: float) -> frozenset[int]:
    return kept - {change(traffic.writes, at).n}


def keep(traffic: Traffic, kept: frozenset[int], at: float) -> frozenset[int]:
    return kept | {change(traffic.writes, at).n}


def fail(kind: str) -> Callable[[Traffic, frozenset[int], float], frozenset[int]]:
    def one(traffic: Traffic, kept: frozenset[int], at: float) -> frozenset[int]:
        change(traffic.reads[kind] if kind else traffic.writes, at, error="gone")
        return kept

    return one


def show(kind: str) -> Callable[[Traffic, frozenset[int], float], frozenset[int]]:
    def one(traffic: Traffic, kept: frozenset[int], at: float) -> frozenset[int]:
        # a row that was committed on the old leader and never acknowledged
        unacknowledged = change(traffic.writes, CUT)
        change(traffic.reads[kind], at, rows=kept | {unacknowledged.n})
        return kept

    return one


@pytest.mark.parametrize(
    ("spoil", "at", "sentence"),
    [
        (lose, 95.0, "writes from before the mark are lost"),
        (lose, 125.0, "writes from after the interruption are lost"),
        (keep, 105.0, "writes from after the mark are still there"),
        (fail(""), 105.0, "2 interruptions, expected one"),
        (fail(""), 126.0, "2 interruptions, expected one"),
        (fail(""), 135.0, "errors after the rollback was reported done"),
        (fail("leader"), 135.0, "errors after the rollback was reported done"),
        (fail("any replica"), 135.0, "errors after the rollback was reported done"),
        (show("leader"), 131.0, "reads of the leader saw discarded rows"),
        (show("replica"), 131.0, "reads of the replica saw discarded rows"),
        (show("any replica"), 131.0, "reads of the any replica saw discarded rows"),
    ],
)
def test_what_must_never_be_is_found(
    spoil: Callable[[Traffic, frozenset[int], float], frozenset[int]], at: float, sentence: str
) -> None:
    traffic, kept = seen()
    kept = spoil(traffic, kept, at)
    assert any(sentence in fault for fault in traffic.faults(MARK, DONE, kept, 2))


def test_a_client_that_falls_silent_is_no_proof() -> None:
    traffic, kept = seen()
    traffic.writes = [one for one in traffic.writes if one.begin < DONE]
    assert "nothing was written after the rollback was reported done" in traffic.faults(MARK, DONE, kept, 2)

    traffic, kept = seen()
    traffic._threads = [threading.Thread(name="writer", target=lambda: None)]
    traffic._threads[0].start()
    traffic._threads[0].join()
    traffic.__exit__(None, None, None)
    assert traffic.faults(MARK, DONE, kept, 2) == ["the client's writer did not go on to the end"]


def test_nothing_seen_is_no_proof() -> None:
    traffic, kept = seen()
    traffic.reads["replica"] = [one for one in traffic.reads["replica"] if one.begin < DONE]
    assert "nothing was read through the replica's port after the rollback" in traffic.faults(MARK, DONE, kept, 2)
    assert "expected 3 replicas" in traffic.faults(MARK, DONE, kept, 3)[-1]
    everything = frozenset(one.n for one in traffic.writes if not one.error)
    assert "no write was discarded, so this rollback proves nothing" in traffic.faults(MARK, DONE, everything, 2)
