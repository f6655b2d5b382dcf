"""Tasks of a run that has ended are cleared: what is left to do is done, and nothing of another run is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.cluster.scene import GOOD_MIGRATION, Scene, changed
from tests.cluster.test_deploy import CHECKS, deploy
from tests.cluster.verdict import contents, look, unchanged, verdict

from bluegreen.clusters import load_registry

NO_LOCK = "this run does not hold the lock"


def clear(scene: Scene, dag: str, run_id: str, task: str) -> tuple[str, dict[str, Any]]:
    """Clear a task and all that follow, as a person does in the UI; return the run's new state and report."""
    scene.clear(dag, run_id, task)
    state = scene.airflow.wait(f"bluegreen_{dag}", run_id, seconds=400)
    return state, scene.airflow.xcom(f"bluegreen_{dag}", run_id, "report") or {}


def failed(scene: Scene, dag: str, run_id: str) -> dict[str, Any]:
    """Wait for the end of a run, which must fail."""
    state = scene.airflow.wait(f"bluegreen_{dag}", run_id, seconds=400)
    report = scene.airflow.xcom(f"bluegreen_{dag}", run_id, "report") or {}
    assert state == "failed", report
    return report


def test_a_checkpoint_that_was_taken_is_not_undone(scene: Scene) -> None:
    run_id = scene.trigger("checkpoint", label="release 1")
    scene.record = scene.finish("checkpoint", run_id)["checkpoint"]
    before = look(scene.lab)

    state, report = clear(scene, "checkpoint", run_id, "hold")

    assert (state, report["result"]) == ("success", "held"), report
    unchanged(scene.lab, before)

    for task in ("check", "hold"):
        state, report = clear(scene, "checkpoint", run_id, task)

        assert state == "failed", report
        assert f"Checkpoint {scene.record['id']}, which this run took before it was cleared, is still held" in str(
            report["message"]
        )
        unchanged(scene.lab, before)


def test_a_rollback_that_ended_before_it_stopped_anybody_can_be_resumed(scene: Scene) -> None:
    scene.checkpoint()
    scene.edit_journals(lambda journal: {"phase": "stopping", "revision": journal["revision"] + 1})
    aside = scene.lab.nodes[scene.third].patroni_config
    left = aside.with_name(aside.name + ".bluegreen-aside")
    left.write_text("as if somebody was stopped")

    assert "a rollback to checkpoint" in scene.refused("resume")

    left.unlink()
    scene.must("resume")
    verdict(scene.lab, before=scene.fresh, rows=scene.rows)


def test_what_is_closed_stays_closed(scene: Scene) -> None:
    scene.checkpoint()
    run_id = scene.trigger("resume", checkpoint=scene.record["id"])
    scene.finish("resume", run_id)

    state, report = clear(scene, "resume", run_id, "close")

    assert (state, report["result"]) == ("success", "resumed"), report
    verdict(scene.lab, before=scene.fresh, rows=scene.rows)


def test_a_release_does_not_touch_the_next_checkpoint(scene: Scene) -> None:
    scene.checkpoint(label="monday")
    run_id = scene.trigger("resume")
    scene.finish("resume", run_id)
    scene.checkpoint(label="tuesday")
    before = look(scene.lab)

    state, report = clear(scene, "resume", run_id, "release")

    assert state == "failed" and NO_LOCK in report["message"] and scene.record["id"] in report["message"], report
    unchanged(scene.lab, before)


def test_a_stop_does_nothing_after_the_old_cluster_was_put_back(scene: Scene, registry: Path) -> None:
    lab = scene.lab
    scene.checkpoint()
    rows = scene.deploy_badly()
    with changed(registry, lab.name, node={"stop": "false"}):
        run_id = scene.trigger("rollback", **scene.rollback_conf())
        assert "put back into service" in failed(scene, "rollback", run_id)["message"]

    state, report = clear(scene, "rollback", run_id, "stop")

    assert state == "failed" and "expected a rollback that has begun" in report["message"], report
    verdict(lab, before=scene.fresh, rows=rows, held=scene.held)

    state, report = clear(scene, "rollback", run_id, "plan")

    assert (state, report["result"]) == ("success", "rolled_back"), report
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


def test_an_old_cluster_that_could_not_be_put_back_is_when_the_task_is_cleared(scene: Scene, registry: Path) -> None:
    lab = scene.lab
    scene.checkpoint()
    rows = scene.deploy_badly()
    stop = load_registry(registry).get(lab.name).node.stop
    with changed(registry, lab.name, node={"start": "false", "stop": f"test {{member}} = {scene.third} && {stop}"}):
        run_id = scene.trigger("rollback", **scene.rollback_conf())
        assert "Putting the old cluster back into service failed too" in failed(scene, "rollback", run_id)["message"]

    state, report = clear(scene, "rollback", run_id, "put_back")

    assert state == "failed" and "The old cluster was put back into service" in report["message"], report
    verdict(lab, before=scene.fresh, rows=rows, held=scene.held)
    assert not scene.locks()


@pytest.mark.whole
def test_members_that_could_not_rejoin_do_so_when_their_tasks_are_cleared(scene: Scene, registry: Path) -> None:
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    start = load_registry(registry).get(lab.name).node.start
    with changed(registry, lab.name, node={"start": f"test {{member}} = {scene.held} && {start}"}):
        run_id = scene.trigger("rollback", **scene.rollback_conf())
        assert "there is only forward" in failed(scene, "rollback", run_id)["message"]

    state, report = clear(scene, "rollback", run_id, "rejoin")

    assert (state, report["result"]) == ("success", "rolled_back"), report
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert not scene.locks()


@pytest.mark.whole
def test_a_deployment_is_judged_by_what_its_present_pass_did(scene: Scene) -> None:
    run_id, state, report = deploy(scene, sql=GOOD_MIGRATION, checks=CHECKS)
    assert (state, report["result"]) == ("success", "deployed"), report
    rows = contents(scene.lab, scene.leader)

    state, report = clear(scene, "deploy", run_id, "deploy")

    assert (state, report["result"]) == ("failed", "failed"), report
    assert "holds no checkpoint" in report["message"], report
    verdict(scene.lab, before=scene.fresh, rows=rows)
