"""A node loses its network, the way to another node, or its power, at each step of an operation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab.compose.files import SSH_PORT
from lab.compose.stack import ComposeLab, container, docker
from tests.cluster.scene import Scene, wait_for, watching
from tests.faults.conftest import Stage
from tests.faults.judge import Expectation, settle, wrongs

from bluegreen.hooks.stopping import listens

CUT_SECONDS = 25
RUN_SECONDS = 420
TRIES = 3
CUTS = [
    ("checkpoint", "hold", "held"),
    ("checkpoint", "mark", "leader"),
    ("checkpoint", "record", "third"),
    ("resume", "release", "held"),
    ("resume", "release", "leader"),
    ("resume", "close", "third"),
    ("rollback", "plan", "leader"),
    ("rollback", "stop", "third"),
    ("rollback", "stop", "leader"),
    ("rollback", "recover", "held"),
    ("rollback", "remove_cluster", "held"),
    ("rollback", "start_leader", "held"),
    ("rollback", "rejoin", "third"),
    ("rollback", "close", "leader"),
    ("rollback", "unlock", "third"),
]
# both go on reaching everybody else: Airflow, the DCS, the other members
PAIRS = [
    ("checkpoint", "hold", "leader", "held"),
    ("resume", "release", "leader", "held"),
    ("rollback", "stop", "leader", "held"),
    ("rollback", "rejoin", "third", "held"),
]
# tasks that last long enough to be met while they run; at the others the node is gone when they begin
LONG = ("stop", "recover", "start_leader", "rejoin")
WAITING = ("scheduled", "queued", "up_for_retry")


def instances(scene: Scene, run_id: str, task_id: str, operation: str = "rollback") -> list[dict[str, Any]]:
    """What Airflow says of a task of a run, of each of its instances."""
    return [one for one in scene.airflow.tasks(f"bluegreen_{operation}", run_id) if one["task_id"] == task_id]


def wait_task(scene: Scene, run_id: str, task_id: str, operation: str = "rollback") -> None:
    """Wait until a task of a run runs, or, where it is short, is about to."""
    wanted = ("running",) if task_id in LONG else ("running", *WAITING)

    def begun() -> bool:
        states = {one["state"] for one in instances(scene, run_id, task_id, operation)}
        return bool(states & {*wanted, "success", "failed", "upstream_failed"})

    wait_for(f"{task_id} runs", begun, seconds=120, every=0.05)


@contextlib.contextmanager
def one_writer(lab: ComposeLab) -> Iterator[None]:
    """Look into every node all the time, also into those that nobody else reaches: never may two take writes."""
    alone: set[str] = set()
    seen: set[str] = set()

    def look() -> None:
        found = lab.writers()
        alone.update(found if len(found) == 1 else ())
        # a second look, since the members are asked one after the other
        if len(found) > 1 and len(found := lab.writers()) > 1:
            seen.add(", ".join(found))

    with watching(look, 0.3) as looks:
        yield
    assert looks[0] > 10, "the nodes were hardly looked at"
    assert alone, "nobody was seen to take writes, so two would not have been seen either"
    assert not seen, f"took writes at once: {seen}"


def is_gone(lab: ComposeLab, name: str) -> bool:
    """Whether nobody reaches a node's sshd any more, as this machine sees it."""
    return not listens(lab.nodes[name].host, SSH_PORT)


# given a run of an operation, break something; returns what mends it
Break = Callable[[Scene, str], Callable[[], object]]


def broken_run(
    stage: Stage, operation: str, task_id: str, break_it: Break, met_by: str
) -> tuple[Scene, str, Callable[[], object]]:
    """Begin an operation and break something while a task runs; begin anew where what it meets was over before."""
    for _ in range(TRIES):
        scene = stage.set(operation)
        run_id = scene.trigger(operation, **scene.conf(operation))
        wait_task(scene, run_id, task_id, operation)
        mend = break_it(scene, run_id)
        states = []
        try:
            states = [one["state"] for one in instances(scene, run_id, met_by, operation)]
        finally:
            if not (met := any(state in (None, "running", *WAITING) for state in states)):
                mend()
        if met:
            return scene, run_id, mend
        scene.airflow.wait(f"bluegreen_{operation}", run_id, seconds=RUN_SECONDS, every_seconds=0.5)
    raise AssertionError(f"in {TRIES} runs {met_by} was over before anything could be broken: {states}")


def broken_operation(stage: Stage, operation: str, task_id: str, break_it: Break, *, met_by: str = "") -> None:
    """Break something while a task runs and mend it; then the report must be true, and the same run again end well."""
    lab = stage.lab
    assert isinstance(lab, ComposeLab)
    scene, run_id, mend = broken_run(stage, operation, task_id, break_it, met_by or task_id)
    with one_writer(lab):
        try:
            time.sleep(CUT_SECONDS)
        finally:
            mend()
        fails_over = operation == "rollback" and task_id in ("start_leader", "rejoin", "close", "unlock")
        expected = Expectation(scene, operation, stage.deployed, fails_over=fails_over, cut_off=True)
        state = scene.airflow.wait(f"bluegreen_{operation}", run_id, seconds=RUN_SECONDS, every_seconds=0.5)
        report: dict[str, Any] = scene.airflow.xcom(f"bluegreen_{operation}", run_id, "report") or {}
        outcome = settle(expected, seconds=90)
    print(f"{task_id}: {state}, {outcome.state or 'needs a person'}: {report.get('message')}")
    found = list(wrongs(expected, state, report, outcome))
    assert not found, "\n".join(found)
    if outcome.state != "after":
        again, report = scene.run(operation, **scene.conf(operation))
        then = settle(expected, seconds=90, wanted="after")
        print(f"again: {again}: {report.get('message')}")
        assert (again, then.state) == ("success", "after"), f"{report.get('message')}; {then.lacks.get('after')}"


@pytest.mark.parametrize(("operation", "task_id", "role"), CUTS, ids=["-".join(cut) for cut in CUTS])
def test_a_node_without_network(stage: Stage, operation: str, task_id: str, role: str) -> None:
    def cut(scene: Scene, _: str) -> Callable[[], object]:
        lab, name = scene.lab, scene.who(role)
        assert isinstance(lab, ComposeLab)
        assert not is_gone(lab, name)
        lab.cut(name)
        assert is_gone(lab, name)
        return lambda: lab.join(name)

    broken_operation(stage, operation, task_id, cut)


def test_the_leader_has_no_network_while_the_old_cluster_is_put_back(stage: Stage) -> None:
    def cut(scene: Scene, run_id: str) -> Callable[[], object]:
        lab, names = scene.lab, (scene.held, scene.who("leader"))
        assert isinstance(lab, ComposeLab)
        lab.cut(names[0])
        try:
            states = ("running", "up_for_retry", "success", "skipped", "failed")
            wait_for("put_back", lambda: scene.is_in("rollback", run_id, "put_back", *states), seconds=300, every=0.05)
        except BaseException:
            lab.join(names[0])
            raise
        lab.cut(names[1])
        assert [name for name in names if not is_gone(lab, name)] == []

        def join() -> None:
            for name in names:
                lab.join(name)

        return join

    broken_operation(stage, "rollback", "recover", cut, met_by="put_back")


@pytest.mark.parametrize(("operation", "task_id", "role", "other"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_two_nodes_that_do_not_reach_each_other(
    stage: Stage, operation: str, task_id: str, role: str, other: str
) -> None:
    def cut(scene: Scene, _: str) -> Callable[[], object]:
        lab, pair = scene.lab, (scene.who(role), scene.who(other))
        assert isinstance(lab, ComposeLab)
        lab.cut_between(*pair)
        (third,) = set(lab.names) - set(pair)
        assert (lab.reaches(*pair), lab.reaches(pair[0], third), lab.reaches(third, pair[1])) == (False, True, True)
        return lambda: lab.join_between(*pair)

    broken_operation(stage, operation, task_id, cut)


@pytest.mark.parametrize(("task_id", "role"), [("stop", "leader"), ("rejoin", "third")])
def test_a_node_without_power(stage: Stage, task_id: str, role: str) -> None:
    def kill(scene: Scene, _: str) -> Callable[[], object]:
        name = container(scene.who(role))
        docker("kill", name)
        assert isinstance(scene.lab, ComposeLab) and is_gone(scene.lab, scene.who(role))
        return lambda: docker("start", name)

    broken_operation(stage, "rollback", task_id, kill)
