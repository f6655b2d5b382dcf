"""What a fault has led to: the state before the operation, the state after it, or one that needs a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import psycopg
from tests.cluster.scene import LOCK, Scene, has, wait_for
from tests.cluster.verdict import Contents, Picture, contents, look, picture_faults
from tests.faults.sentences import contradictions

from bluegreen.checkpoint import Phase
from bluegreen.recovery.node_config import HOLD_TAGS

SUCCESS = {"checkpoint": "held", "resume": "resumed", "rollback": "rolled_back"}
SETTLE_SECONDS = 60
# a journal that says so will not change by itself
UNFINISHED = set(Phase) - {Phase.HELD}
UNFINISHED_SECONDS = 15
HELD_DELAY_MS = str(timedelta(days=20) // timedelta(milliseconds=1))
# longer than a turn of Patroni, in which it would let a paused replay go on
STAYS_SECONDS = 7


@dataclass
class Expectation:
    """The two states that an operation may end in.

    :param scene: the cluster; its record is that of the checkpoint, where one was there before.
    :param deployed: what the leader has after the deployment.
    :param fails_over: the new leader may have been followed by another, or by itself, on one more timeline.
    :param cut_off: the held member may have lost its leader after it had received the mark: it starts no receiver then
        until its replay goes on (hazard H7).
    """

    scene: Scene
    operation: str
    deployed: Contents
    fails_over: bool = False
    cut_off: bool = False

    def before(self, picture: Picture) -> list[str]:
        """What keeps the cluster from being as it was before the operation."""
        fresh, rows = self.scene.fresh, self.scene.rows
        if self.operation == "checkpoint":
            return picture_faults(picture, fresh, rows)
        held = self.scene.held
        held_streams = picture.members[held].streams
        faults = picture_faults(picture, fresh, self.deployed, held=held, held_streams=held_streams)
        return faults + self._hold_faults(picture, held)

    def unfinished(self) -> bool:
        """Whether a journal says that the operation stopped half-way."""
        phases = {self.scene.journal(name).get("phase") for name in self.scene.lab.names}
        return bool(phases & UNFINISHED)

    def after(self, picture: Picture) -> list[str]:
        """What keeps the cluster from being as it is after the operation."""
        fresh, rows = self.scene.fresh, self.scene.rows
        if self.operation == "checkpoint":
            held = next((name for name, one in picture.members.items() if one.tags.get("bluegreen_id")), None)
            if not held:
                return ["no member is held"]
            held_streams = picture.members[held].streams if self.cut_off else True
            faults = picture_faults(picture, fresh, rows, held=held, held_streams=held_streams)
            return faults + self._hold_faults(picture, held, {Phase.HELD})
        if self.operation == "resume":
            return picture_faults(picture, fresh, self.deployed)
        if self.fails_over:
            return picture_faults(picture, fresh, rows, after_xid=self.scene.xid, branch_is_last=False)
        return picture_faults(picture, fresh, rows, leader=self.scene.held, after_xid=self.scene.xid)

    def _hold_faults(self, picture: Picture, held: str, phases: set[Phase] | None = None) -> list[str]:
        """What is missing of the hold in the held member's Patroni and server, and in the journals.

        :param phases: what the journals may say; None where an operation may have begun.
        """
        one = picture.members[held]
        wanted: dict[str, tuple[Any, Any]] = {
            f"tag {tag}": (one.tags.get(tag) or False, value) for tag, value in HOLD_TAGS.items()
        }
        settings = {"hot_standby_feedback": "off"}
        if "recovery_min_apply_delay" in one.settings:
            settings["recovery_min_apply_delay"] = HELD_DELAY_MS
        wanted |= {name: (one.settings.get(name), value) for name, value in settings.items()}
        for name in picture.members:
            journal = self.scene.journal(name)
            # a case may have edited the mark itself
            keys = ("id", "held", "xid", "lsn", "timeline") if phases else ("id", "held")
            found = {key: str(journal.get(key)) for key in keys}
            shown = {key: str(one.tags.get(f"bluegreen_{key}")) for key in found} | {"held": held}
            wanted[f"the journal on {name}"] = (found, shown)
            if phases:
                wanted[f"the phase on {name}"] = (journal.get("phase") in phases, True)
        return [f"{held}: {key} is {got}, expected {value}" for key, (got, value) in wanted.items() if got != value]

    def promoted(self, picture: Picture) -> bool | None:
        """Whether a member was promoted at the mark; None where no operation does that."""
        if self.operation != "rollback":
            return None
        line = f"\tafter transaction {self.scene.xid & 0xFFFFFFFF}\n"
        return any(line in text + "\n" for one in picture.members.values() for text in one.histories.values())


@dataclass
class Outcome:
    """What was seen when everything had ended.

    :param state: `before`, `after`, or an empty text where it is neither.
    :param lacks: what keeps it from either.
    :param promoted: whether a member was promoted at the mark; None where it is not known.
    """

    state: str
    lacks: dict[str, list[str]]
    promoted: bool | None = None


def settle(expected: Expectation, seconds: float = SETTLE_SECONDS, wanted: str = "") -> Outcome:
    """Wait until the cluster is in one of the two states.

    :param wanted: only this one ends the wait early.
    """
    begin = time.monotonic()
    while True:
        lacks: dict[str, list[str]] = {}
        promoted = None
        try:
            picture = look(expected.scene.lab)
        except (OSError, httpx.HTTPError, psycopg.Error, KeyError, ValueError) as error:
            lacks = {"before": [f"cannot be looked at: {error}"], "after": [f"cannot be looked at: {error}"]}
        else:
            # the next run takes away what a run that has ended could not give back
            for one in picture.members.values():
                one.leftovers -= {LOCK}
            promoted = expected.promoted(picture)
            for name, faults in (("before", expected.before), ("after", expected.after)):
                lacks[name] = faults(picture)
                if not lacks[name] and wanted in ("", name):
                    return Outcome(name, lacks, promoted)
        stuck = not wanted and expected.unfinished()
        if time.monotonic() - begin > (UNFINISHED_SECONDS if stuck else seconds):
            return Outcome(next((name for name, found in lacks.items() if not found), ""), lacks, promoted)
        time.sleep(1)


def wrongs(expected: Expectation, run_state: str, report: dict[str, Any], outcome: Outcome) -> Iterator[str]:
    """What must never be: a success over the wrong state, a failure that nobody is told of, or told of wrongly."""
    operation, held = expected.operation, expected.scene.held
    result, message = report.get("result"), str(report.get("message") or "")
    if not report or not message:
        yield f"the run ended as {run_state} without a report that says something: {report}"
    succeeded = run_state == "success" or result == SUCCESS[operation]
    if succeeded and outcome.state != "after":
        yield f"the report says {result!r} ({run_state}), but the cluster is not in the state after it: " + "; ".join(
            outcome.lacks.get("after", [])[:5]
        )
    if message and not succeeded:
        yield from contradictions(operation, message, outcome.state, promoted=outcome.promoted, held=held)
    if succeeded != (run_state == "success"):
        yield f"the run is {run_state}, but its report says {result!r}"
    if "Traceback" in message or "\n" in message:
        yield f"the report's message is no sentence: {message!r}"


def not_as_written(expected: Expectation) -> Iterator[str]:
    """Write on the leader: every member must show it; the held one must have received it, and show nothing."""
    scene, lab = expected.scene, expected.scene.lab
    held = str(scene.journal(lab.names[0]).get("held")) if expected.operation == "checkpoint" else ""
    try:
        leader = scene.leader
        kept = contents(lab, held) if held else {}
        rows = scene.deploy("create table written_afterwards as select generate_series(1, 100) as i")
        sent = lab.value(leader, "select pg_current_wal_flush_lsn()::text")
        for name in sorted(set(lab.names) - {leader, held}):
            wait_for(f"{name} shows what was written on {leader}", lambda name=name: has(lab, name, rows))
        if not held:
            return
        received = "select pg_last_wal_receive_lsn() >= %s::text::pg_lsn"
        wait_for(f"{held}, which is held, receives it", lambda: lab.value(held, received, [sent]))
        end = time.monotonic() + STAYS_SECONDS
        while time.monotonic() < end:
            if contents(lab, held) != kept:
                yield f"{held} is called held, and shows what was written on {leader} after the mark"
                return
            time.sleep(0.5)
    except (AssertionError, psycopg.Error, ValueError) as error:
        yield f"what is written afterwards is not where it must be: {error}"


def taking_writes(scene: Scene) -> list[str]:
    """The members whose servers take writes now."""
    found = []
    for name in scene.lab.names:
        try:
            with scene.lab.connect(name, "postgres", connect_timeout=2) as connection:
                if connection.execute("select not pg_is_in_recovery()").fetchone() == (True,):
                    found.append(name)
        except psycopg.Error:
            continue
    return found


def emptied(scene: Scene) -> Callable[[list[str]], list[str]]:
    """A look for members whose data went while no other member took writes; call it as often as you like.

    What it returns is called with the members that take writes: now, or when it was called before.
    """
    there: set[str] = set()
    before: set[str] = set()

    def see(leaders: list[str]) -> list[str]:
        nonlocal there, before
        now = {name for name, node in scene.lab.nodes.items() if (node.data_dir / "PG_VERSION").exists()}
        led, before = before | set(leaders), set(leaders)
        gone, there = there - now, now
        return [name for name in sorted(gone) if not led - {name}]

    return see
