"""The lies: how and what Patroni's REST API and a node over SSH may answer, and the words that name it."""

from __future__ import annotations

import gzip
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.versions.liars import MEGABYTE, STEP, HttpLie, Output, Say, plainly

HEAD = b"HTTP/1.1 200 X\r\n"
BOMB = gzip.compress(b" " * (400 * MEGABYTE))
SILENT = "did not end its answer"


# Patroni's REST API: how it answers


def huge(say: Say, content: bytes) -> None:
    say(HEAD + b"Content-Length: %d\r\n\r\n" % (100 * MEGABYTE))
    for _ in range(100 * MEGABYTE // STEP):
        say(b" " * STEP)


def slow_body(say: Say, content: bytes) -> None:
    say(HEAD + b"Content-Length: 1000\r\n\r\n")
    for _ in range(1000):
        say(b" ")
        time.sleep(1)


def slow_head(say: Say, content: bytes) -> None:
    for byte in HEAD + b"X: " + b"x" * 1000:
        say(bytes([byte]))
        time.sleep(1)


def truncated(say: Say, content: bytes) -> None:
    say(HEAD + b"Content-Length: %d\r\n\r\n" % (len(content) + 1000) + content)


def body(content: bytes, headers: str = "") -> HttpLie:
    return lambda say, _: plainly(say, content, headers=headers)


ANSWERS: dict[str, tuple[HttpLie, str]] = {
    "huge": (huge, "answered more than"),
    "slow body": (slow_body, SILENT),
    "slow head": (slow_head, SILENT),
    "truncated": (truncated, "does not answer"),
    "compressed bomb": (body(BOMB, "Content-Encoding: gzip\r\n"), "answered compressed"),
    "not UTF-8": (body(b"\xff\xfe\x80" * 1000), "expected JSON"),
    "deep nesting": (body(b'{"members":' + b"[" * 200_000), "expected JSON"),
    "members no list": (body(b'{"members": {"n1": 1}}'), "named no members"),
    "member no mapping": (body(b'{"members": [[]]}'), "not a mapping"),
    "name no text": (body(b'{"members": [{"name": 1}]}'), "without name"),
}


# Patroni's REST API: what it says


def of(answer: dict[str, Any], member: str, /, **values: Any) -> None:
    next(one for one in answer["members"] if one["name"] == member).update(values)


def without_n3(answer: dict[str, Any]) -> None:
    answer["members"] = [one for one in answer["members"] if one["name"] != "n3"]


def another_leader(answer: dict[str, Any]) -> None:
    of(answer, "n1", role="replica", state="streaming")
    of(answer, "n2", role="leader", state="running")


def swapped(answer: dict[str, Any]) -> None:
    hosts = {one["name"]: one["host"] for one in answer["members"]}
    of(answer, "n2", host=hosts["n3"])
    of(answer, "n3", host=hosts["n2"])


def timelines(answer: dict[str, Any]) -> None:
    for name in ("n2", "n3"):
        of(answer, name, timeline=77)


def one_timeline(answer: dict[str, Any]) -> None:
    for one in answer["members"]:
        one["timeline"] = 77


LONG = "x" * 80 + ".example"
LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another leader": (another_leader, "but it is in recovery"),
    "a second leader": (lambda answer: of(answer, "n2", role="leader"), "expected exactly one"),
    "another timeline": (timelines, "is on timeline 77"),
    "one timeline for all": (one_timeline, "PostgreSQL that it is on"),
    "a member left out": (without_n3, "expected the same"),
    "a member twice": (lambda answer: of(answer, "n3", name="n2"), "named a member twice"),
    "hosts swapped": (swapped, "expected the same"),
    "a host that cannot be": (lambda answer: of(answer, "n2", host=LONG), "expected the same"),
    "an address that cannot be": (lambda answer: of(answer, "n2", api_url=f"http://{LONG}:8008"), "does not answer"),
    "another port": (lambda answer: of(answer, "n1", port=1), "does not answer"),
    "a hostile name": (lambda answer: of(answer, "n2", name="n2\n\x1b[31m$(touch x)\u202e"), "cannot be put into"),
    "a hostile host": (lambda answer: of(answer, "n2", host="127.0.0.1 options='-c x'; $(id)\0"), "expected the same"),
}


# What a member says of itself, and of the dynamic configuration


def status(code: int) -> HttpLie:
    """A health check that always answers the same."""
    return lambda say, content: plainly(say, content, status=code)


def of_member(**values: Any) -> HttpLie:
    return lambda say, content: plainly(say, json.dumps({**json.loads(content), **values}).encode())


LIST = body(b"[1]")
# operation: request: what it is answered
ELSEWHERE: dict[str, dict[str, dict[str, HttpLie]]] = {
    "checkpoint": {
        "GET /config": {"huge": huge, "a list": LIST, "slow body": slow_body},
        "GET /patroni": {
            "huge": huge,
            "a list": LIST,
            "no tags": of_member(tags={}),
            "tags no mapping": of_member(tags=1),
        },
    },
    "resume": {
        "GET /patroni": {"tags that stay": of_member(tags={"bluegreen_id": "x"}), "tags no mapping": of_member(tags=1)},
    },
    "rollback": {
        "GET /config": {"huge": huge, "a list": LIST},
        "GET /patroni": {
            "huge": huge,
            "another timeline": of_member(timeline=77),
            "no number": of_member(timeline="1"),
        },
        "GET /primary": {"everybody leads": status(200), "nobody leads": status(503), "huge": huge},
    },
}


# A node, over SSH


def said(content: bytes, status: int = 0) -> Output:
    def lie(say: Say, true: subprocess.CompletedProcess[bytes]) -> int:
        say(content)
        return status

    return lie


def much(say: Say, true: subprocess.CompletedProcess[bytes]) -> int:
    for _ in range(100 * MEGABYTE // STEP):
        say(b"x" * STEP)
    return 0


def for_ever(say: Say, true: subprocess.CompletedProcess[bytes]) -> int:
    for _ in range(1000):
        say(b"x")
        time.sleep(1)
    return 0


def half(say: Say, true: subprocess.CompletedProcess[bytes]) -> None:
    say(true.stdout[: len(true.stdout) // 2])


READS, PROBES, LISTS = "for name in journal lock original", "for program in pg_ctl", "list -f json"
OUTPUTS: dict[str, tuple[str, Output, str]] = {
    "huge": (READS, much, "printed more than"),
    "cut off": (READS, half, "the connection ended"),
    "not UTF-8": (READS, said(b"\xff\xfe\x00\n"), "expected a section of ours"),
    "a profile that prints": (READS, said(b"Welcome to n2!\n\x1b[31m$(touch x)\n"), "expected a section of ours"),
    "nothing": (READS, said(b""), "n2"),
    "many lines": (READS, said(b"\n" * (8 * MEGABYTE)), "expected a section of ours"),
    "no figures": (PROBES, said(b"now\tJChpZCk=\nprocesses\tJChpZCk=\n"), "expected"),
    "members that are not": (LISTS, said(json.dumps([{"Member": "n2", "Host": "x"}]).encode()), "expected the same"),
    "a list that is deep": (LISTS, said(b"[" * 200_000), "it said"),
}
