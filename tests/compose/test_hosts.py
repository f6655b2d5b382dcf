"""A node loses its network, or its power, at each step of a rollback."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from lab.compose.stack import ComposeLab, container, docker
from tests.cluster.scene import Scene, wait_for
from tests.faults.conftest import Stage
from tests.faults.judge import Expectation, settle, taking_writes, wrongs

CUT_SECONDS = 25
RUN_SECONDS = 420
CUTS = [
    ("plan", "leader"),
    ("stop", "third"),
    ("stop", "leader"),
    ("recover", "held"),
    ("remove_cluster", "held"),
    ("start_leader", "held"),
    ("rejoin", "third"),
    ("close", "leader"),
]


def who(scene: Scene, role: str) -> str:
    """The member with this role, as it is before the rollback."""
    leader = str(scene.fresh.leader)
    (third,) = set(scene.lab.names) - {leader, scene.held}
    return {"leader": leader, "held": scene.held, "third": third}[role]


def wait_task(scene: Scene, run_id: str, task_id: str) -> None:
    """Wait until a task of the rollback runs, or has run."""

    def begun() -> bool:
        states = {one["task_id"]: one["state"] for one in scene.airflow.tasks("bluegreen_rollback", run_id)}
        return states.get(task_id) in ("running", "success", "failed", "up_for_retry")

    wait_for(f"{task_id} runs", begun, seconds=120, every=0.05)


def broken_rollback(stage: Stage, task_id: str, break_it: Callable[[Scene], Callable[[], None]]) -> None:
    """Break something while a task runs and mend it; then the report must be true, and the same run again end well."""
    scene = stage.set("rollback")
    lab = scene.lab
    assert isinstance(lab, ComposeLab)
    expected = Expectation(scene, "rollback", stage.deployed, fails_over=task_id in ("start_leader", "rejoin", "close"))
    run_id = scene.trigger("rollback", **scene.rollback_conf())
    wait_task(scene, run_id, task_id)
    mend = break_it(scene)
    try:
        time.sleep(CUT_SECONDS)
    finally:
        mend()
    state = scene.airflow.wait("bluegreen_rollback", run_id, seconds=RUN_SECONDS, every_seconds=0.5)
    report: dict[str, Any] = scene.airflow.xcom("bluegreen_rollback", run_id, "report") or {}
    outcome = settle(expected, seconds=90)
    print(f"{task_id}: {state}, {outcome.state or 'needs a person'}: {report.get('message')}")
    assert not list(wrongs(expected, state, report, outcome))
    assert len(taking_writes(scene)) < 2
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
