"""One case from its beginning to its verdict."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.scene import Scene, wait_for, watching
from tests.cluster.verdict import Contents
from tests.faults.cases import LEADS_TO, Case
from tests.faults.damage import Mend, Place, patroni_killed
from tests.faults.judge import Expectation, Outcome, emptied, not_as_written, settle, taking_writes, wrongs

RUN_SECONDS = 420
REACH_SECONDS = 120
# where another step spends its tries first, or a standby is given time to catch up
REACH_LATE_SECONDS = 300


@dataclass
class Result:
    """What became of a case.

    :param verdict: `before`, `after`, or `person` where it was neither until a person acted.
    :param said: the sentence of the first run's report.
    :param again: what the second run said, where the first did not reach the state after the operation.
    :param wrong: what must never be.
    """

    case: str
    verdict: str = ""
    said: str = ""
    again: str = ""
    seconds: float = 0
    wrong: list[str] = field(default_factory=list)


def play(case: Case, place: Place, deployed: Contents) -> Result:
    """Break it, let the run end, judge, and see whether the same run again finishes the work."""
    scene, begin = place.scene, time.monotonic()
    expected = Expectation(scene, case.operation, deployed, case.fails_over)
    found = Result(case.id)
    orphan = place.member if case.fails_over and case.fault is patroni_killed else ""
    with contextlib.ExitStack() as last, _watched(scene, orphan, found.wrong):
        for prepare in case.prepare:
            last.callback(prepare(place))
        run_id = broken_run(case, place)
        dag = f"bluegreen_{case.operation}"
        state = scene.airflow.state(dag, run_id)
        report = scene.airflow.xcom(dag, run_id, "report") or {}
        found.said = str(report.get("message") or "")
        outcome = settle(expected)
        found.wrong += wrongs(expected, state, report, outcome)
        found.verdict = outcome.state or "person"
        if outcome.state == "after":
            found.wrong += not_as_written(expected)
        else:
            _again(case, expected, outcome, found)
        if found.verdict == "person" and not case.person:
            lacks = "; ".join(outcome.lacks.get("before", [])[:6])
            found.wrong.append(f"nothing about this fault needs a person; to the state before lacks: {lacks}")
    found.seconds = round(time.monotonic() - begin, 1)
    return found


def broken_run(case: Case, place: Place) -> str:
    """Start the run, break it at its points, and wait for its end; what was broken is mended then."""
    scene, dag = place.scene, f"bluegreen_{case.operation}"
    run_id = ""
    with contextlib.ExitStack() as mends:
        mends.callback(place.points.clear)
        for number, broken in enumerate(case.breaks):
            place.points.arm(case.point(broken))
            run_id = run_id or scene.trigger(case.operation, **_conf(case, scene))
            late = (case.operation, broken.task) in LEADS_TO
            _wait_point(place, dag, run_id, broken.task, REACH_LATE_SECONDS if late else REACH_SECONDS)
            folder = place.folder / str(number)
            folder.mkdir()
            try:
                mend = broken.fault(place.at(broken.member, folder))
            finally:
                place.points.go()
            mend = _only_once(mend)
            mends.callback(mend)
        if case.mend_after is not None:
            timer = threading.Timer(case.mend_after, mend)
            timer.start()
            mends.callback(timer.cancel)
        scene.airflow.wait(dag, run_id, seconds=RUN_SECONDS, every_seconds=0.5)
    return run_id


def _conf(case: Case, scene: Scene) -> dict[str, Any]:
    return {**scene.conf(case.operation), **case.conf}


def _wait_point(place: Place, dag: str, run_id: str, task: str, seconds: float) -> None:
    """Wait until a task stands at the point that is armed."""
    airflow, ended = place.scene.airflow, False

    def reached() -> bool:
        nonlocal ended
        ended = airflow.state(dag, run_id) in ("success", "failed")
        return ended or place.points.reached() is not None

    wait_for(f"{task} reaches its point", reached, seconds)
    assert not ended, f"the run ended before it reached its point: {airflow.xcom(dag, run_id, 'report')}"


def _only_once(mend: Mend) -> Mend:
    """Mend when it is asked for first, and never again."""
    unmended = threading.Lock()
    return lambda: mend() if unmended.acquire(blocking=False) else None


def _again(case: Case, expected: Expectation, outcome: Outcome, found: Result) -> None:
    """The same DAG again must finish the work, or, where nothing can, say so over a cluster that serves."""
    state, report = expected.scene.run(case.operation, **_conf(case, expected.scene))
    found.again = str(report.get("message") or "")
    if case.lost:
        if outcome.state != "before":
            found.wrong.append(f"the checkpoint is lost, but the first run ended over {outcome}: {found.said}")
        if "lost" not in found.said + found.again:
            found.wrong.append(f"nobody says that the checkpoint is lost: {found.said} / {found.again}")
        if not case.comes_back or state == "failed":
            found.verdict = "person"
            then = settle(expected)
            found.wrong += wrongs(expected, state, report, then)
            if state != "failed" or then.state != "before":
                found.wrong.append(f"the checkpoint is lost, but the second run is {state}: {found.again}")
            return
    then = settle(expected, wanted="after")
    found.wrong += wrongs(expected, state, report, then)
    if then.state == "after":
        found.wrong += not_as_written(expected)
    else:
        lacks = "; ".join(then.lacks.get("after", [])[:6])
        found.wrong.append(f"the same run again is {state} ({found.again}); still missing: {lacks}")


@contextlib.contextmanager
def _watched(scene: Scene, orphan: str, wrong: list[str]) -> Iterator[None]:
    """Look all the time for two members that take writes, and for data that goes while no other member does.

    :param orphan: a member whose Patroni the fault kills: without a watchdog nobody stops its server.
    """
    see_emptied, told = emptied(scene), False

    def look() -> None:
        nonlocal told
        leaders = taking_writes(scene)
        if gone := see_emptied(leaders):
            wrong.append(f"the data went while no other member took writes: {', '.join(gone)}")
        if not told and len(rivals := sorted({*leaders} - {orphan})) > 1:
            wrong.append(f"two members took writes at once: {', '.join(rivals)}")
            told = True

    with watching(look, 0.5):
        yield
