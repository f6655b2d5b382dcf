"""What a fault has led to: the state before the operation, the state after it, or one that needs a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
from tests.cluster.scene import LOCK, Scene
from tests.cluster.verdict import Contents, Picture, look, picture_faults

from bluegreen.checkpoint import Phase

SUCCESS = {"checkpoint": "held", "resume": "resumed", "rollback": "rolled_back"}
SETTLE_SECONDS = 60
# a journal that says so will not change by itself
UNFINISHED = set(Phase) - {Phase.HELD}
UNFINISHED_SECONDS = 15


@dataclass
class Expectation:
    """The two states that an operation may end in.

    :param scene: the cluster; its record is that of the checkpoint, where one was there before.
    :param deployed: what the leader has after the deployment.
    :param fails_over: the new leader may have been followed by another, or by itself, on one more timeline.
    """

    scene: Scene
    operation: str
    deployed: Contents
    fails_over: bool = False

    def before(self, picture: Picture) -> list[str]:
        """What keeps the cluster from being as it was before the operation."""
        fresh, rows = self.scene.fresh, self.scene.rows
        if self.operation == "checkpoint":
            return picture_faults(picture, fresh, rows)
        held_streams = picture.members[self.scene.held].streams
        return picture_faults(picture, fresh, self.deployed, held=self.scene.held, held_streams=held_streams)

    def unfinished(self) -> bool:
        """Whether a journal says that the operation stopped half-way."""
        phases = {self.scene.journal(name).get("phase") for name in self.scene.lab.names}
        return bool(phases & UNFINISHED)

    def after(self, picture: Picture) -> list[str]:
        """What keeps the cluster from being as it is after the operation."""
        fresh, rows = self.scene.fresh, self.scene.rows
        if self.operation == "checkpoint":
            held = next((name for name, one in picture.members.items() if one.tags.get("bluegreen_id")), None)
            return picture_faults(picture, fresh, rows, held=held) if held else ["no member is held"]
        if self.operation == "resume":
            return picture_faults(picture, fresh, self.deployed)
        if self.fails_over:
            return picture_faults(picture, fresh, rows, after_xid=self.scene.xid, branch_is_last=False)
        return picture_faults(picture, fresh, rows, leader=self.scene.held, after_xid=self.scene.xid)


@dataclass
class Outcome:
    """What was seen when everything had ended.

    :param state: `before`, `after`, or an empty text where it is neither.
    :param lacks: what keeps it from either.
    """

    state: str
    lacks: dict[str, list[str]]


def settle(expected: Expectation, seconds: float = SETTLE_SECONDS, wanted: str = "") -> Outcome:
    """Wait until the cluster is in one of the two states.

    :param wanted: only this one ends the wait early.
    """
    begin = time.monotonic()
    while True:
        lacks: dict[str, list[str]] = {}
        try:
            picture = look(expected.scene.lab)
        except (OSError, httpx.HTTPError, psycopg.Error, KeyError, ValueError) as error:
            lacks = {"before": [f"cannot be looked at: {error}"], "after": [f"cannot be looked at: {error}"]}
        else:
            # the next run takes away what a run that has ended could not give back
            for one in picture.members.values():
                one.leftovers -= {LOCK}
            for name, faults in (("before", expected.before), ("after", expected.after)):
                lacks[name] = faults(picture)
                if not lacks[name] and wanted in ("", name):
                    return Outcome(name, lacks)
        stuck = not wanted and expected.unfinished()
        if time.monotonic() - begin > (UNFINISHED_SECONDS if stuck else seconds):
            return Outcome(next((name for name, found in lacks.items() if not found), ""), lacks)
        time.sleep(1)


def wrongs(operation: str, run_state: str, report: dict[str, Any], outcome: Outcome) -> Iterator[str]:
    """What must never be: a success over the wrong state, a failure that nobody is told of."""
    result, message = report.get("result"), str(report.get("message") or "")
    if not report or not message:
        yield f"the run ended as {run_state} without a report that says something: {report}"
    succeeded = run_state == "success" or result == SUCCESS[operation]
    if succeeded and outcome.state != "after":
        yield f"the report says {result!r} ({run_state}), but the cluster is not in the state after it: " + "; ".join(
            outcome.lacks.get("after", [])[:5]
        )
    if succeeded != (run_state == "success"):
        yield f"the run is {run_state}, but its report says {result!r}"
    if "Traceback" in message or "\n" in message:
        yield f"the report's message is no sentence: {message!r}"


def two_leaders(scene: Scene, orphan: str = "") -> Callable[[], list[str]]:
    """A look for two members that take writes at once; call what it returns as often as you like.

    :param orphan: a member whose Patroni the fault kills: without a watchdog nobody stops its server.
    """

    def see() -> list[str]:
        found = []
        for name in set(scene.lab.names) - {orphan}:
            try:
                with scene.lab.connect(name, "postgres", connect_timeout=2) as connection:
                    row = connection.execute("select not pg_is_in_recovery()").fetchone()
                if row and row[0]:
                    found.append(name)
            except psycopg.Error:
                continue
        return found if len(found) > 1 else []

    return see
