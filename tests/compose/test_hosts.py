"""A node loses its network, or its power, at each step of a rollback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab.compose.stack import ComposeLab, container, docker
from tests.cluster.scene import Scene, wait_for, watching
from tests.faults.conftest import Stage
from tests.faults.judge import Expectation, settle, wrongs

CUT_SECONDS = 25
RUN_SECONDS = 420
TRIES = 3
CUTS = [
    ("plan", "leader"),
    ("stop", "third"),
    ("stop", "leader"),
    ("recover", "held"),
    ("remove_cluster", "held"),
    ("start_leader", "held"),
    ("rejoin", "third"),
    ("close", "leader"),
    ("unlock", "third"),
]
# tasks that last long enough to be met while they run; at the others the node is gone when they begin
LONG = ("stop", "recover", "start_leader", "rejoin")
WAITING = ("scheduled", "queued", "up_for_retry")


def who(scene: Scene, role: str) -> str:
    """The member with this role, as it is before the rollback."""
    leader = str(scene.fresh.leader)
    (third,) = set(scene.lab.names) - {leader, scene.held}
    return {"leader": leader, "held": scene.held, "third": third}[role]


def instances(scene: Scene, run_id: str, task_id: str) -> list[dict[str, Any]]:
    """What Airflow says of a task of the rollback, of each of its instances."""
    return [one for one in scene.airflow.tasks("bluegreen_rollback", run_id) if one["task_id"] == task_id]


def wait_task(scene: Scene, run_id: str, task_id: str) -> None:
    """Wait until a task of the rollback runs, or, where it is short, is about to."""
    wanted = ("running",) if task_id in LONG else ("running", *WAITING)

    def begun() -> bool:
        states = {one["state"] for one in instances(scene, run_id, task_id)}
        return bool(states & {*wanted, "success", "failed", "upstream_failed"})

    wait_for(f"{task_id} runs", begun, seconds=120, every=0.05)


@contextlib.contextmanager
def one_writer(lab: ComposeLab) -> Iterator[None]:
    """Look into every node all the time, also into those that nobody else reaches: never may two take writes."""
    seen: set[str] = set()

    def look() -> None:
        # a second look, since the members are asked one after the other
        if len(lab.writers()) > 1 and len(found := lab.writers()) > 1:
            seen.add(", ".join(found))

    with watching(look, 0.3) as looks:
        yield
    assert looks[0] > 10, "the nodes were hardly looked at"
    assert not seen, f"took writes at once: {seen}"


def broken_run(
    stage: Stage, task_id: str, break_it: Callable[[Scene], Callable[[], None]]
) -> tuple[Scene, str, Callable[[], None]]:
    """Begin a rollback and break something while a task runs; begin anew where the task was over before."""
    for _ in range(TRIES):
        scene = stage.set("rollback")
        run_id = scene.trigger("rollback", **scene.rollback_conf())
        wait_task(scene, run_id, task_id)
        mend = break_it(scene)
        states = [one["state"] for one in instances(scene, run_id, task_id)]
        if any(state in (None, "running", *WAITING) for state in states):
            return scene, run_id, mend
        mend()
        scene.airflow.wait("bluegreen_rollback", run_id, seconds=RUN_SECONDS, every_seconds=0.5)
    raise AssertionError(f"in {TRIES} rollbacks {task_id} was over before anything could be broken: {states}")


def broken_rollback(stage: Stage, task_id: str, break_it: Callable[[Scene], Callable[[], None]]) -> None:
    """Break something while a task runs and mend it; then the report must be true, and the same run again end well."""
    lab = stage.lab
    assert isinstance(lab, ComposeLab)
    scene, run_id, mend = broken_run(stage, task_id, break_it)
    with one_writer(lab):
        try:
            time.sleep(CUT_SECONDS)
        finally:
            mend()
        fails_over = task_id in ("start_leader", "rejoin", "close", "unlock")
        expected = Expectation(scene, "rollback", stage.deployed, fails_over=fails_over)
        state = scene.airflow.wait("bluegreen_rollback", run_id, seconds=RUN_SECONDS, every_seconds=0.5)
        report: dict[str, Any] = scene.airflow.xcom("bluegreen_rollback", run_id, "report") or {}
        outcome = settle(expected, seconds=90)
    print(f"{task_id}: {state}, {outcome.state or 'needs a person'}: {report.get('message')}")
    assert not list(wrongs(expected, state, report, outcome))
    if outcome.state != "after":
        again, report = scene.run("rollback", **scene.rollback_conf())
        then = settle(expected, seconds=90, wanted="after")
        print(f"again: {again}: {report.get('message')}")
        assert (again, then.state) == ("success", "after"), f"{report.get('message')}; {then.lacks.get('after')}"


@pytest.mark.parametrize(("task_id", "role"), CUTS, ids=[f"{task}-{role}" for task, role in CUTS])
def test_a_node_without_network(stage: Stage, task_id: str, role: str) -> None:
    def cut(scene: Scene) -> Callable[[], None]:
        lab, name = scene.lab, who(scene, role)
        assert isinstance(lab, ComposeLab)
        lab.cut(name)
        return lambda: lab.join(name)

    broken_rollback(stage, task_id, cut)


@pytest.mark.parametrize(("task_id", "role"), [("stop", "leader"), ("rejoin", "third")])
def test_a_node_without_power(stage: Stage, task_id: str, role: str) -> None:
    def kill(scene: Scene) -> Callable[[], None]:
        name = container(who(scene, role))
        docker("kill", name)
        return lambda: docker("start", name) and None

    broken_rollback(stage, task_id, kill)
