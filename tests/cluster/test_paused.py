"""A DAG that is paused in Airflow, as each is when it is new: nothing is held that nobody could let go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.scene import GOOD_MIGRATION, Scene, wait_for
from tests.cluster.test_clearing import clear, failed
from tests.cluster.test_deploy import CHECKS, deploy
from tests.cluster.verdict import look, unchanged, verdict


@contextmanager
def paused(scene: Scene, dag: str) -> Iterator[None]:
    """Pause a DAG for as long as this lasts."""
    path = f"dags/bluegreen_{dag}"
    assert scene.airflow.request("PATCH", path, {"is_paused": True}).status_code == 200
    try:
        yield
    finally:
        assert scene.airflow.request("PATCH", path, {"is_paused": False}).status_code == 200


def test_nothing_is_held_for_a_deployment_that_could_not_be_rolled_back(scene: Scene) -> None:
    before = look(scene.lab)
    with paused(scene, "rollback"):
        _, state, report = deploy(scene, sql=GOOD_MIGRATION, checks=CHECKS)
    assert (state, report["result"]) == ("failed", "refused"), report
    assert "bluegreen_rollback paused in Airflow" in report["message"], report
    unchanged(scene.lab, before)


def test_a_checkpoint_warns_that_nobody_watches_it(scene: Scene) -> None:
    scene.airflow.request("PATCH", "dags/bluegreen_monitor", {"is_paused": True})
    warnings = scene.checkpoint()["warnings"]
    assert any("bluegreen_monitor is paused in Airflow: nobody watches" in line for line in warnings), warnings


def test_a_rollback_that_was_paused_meanwhile_is_started_by_clearing_its_trigger(scene: Scene) -> None:
    run_id = scene.trigger("deploy", command="sleep 8; exit 3", checks=CHECKS)
    wait_for("a checkpoint is held", lambda: scene.task("deploy", run_id, "held") == "success", seconds=200)
    with paused(scene, "rollback"):
        report = failed(scene, "deploy", run_id)
    assert "the DAG bluegreen_rollback is paused in Airflow" in report["message"], report
    assert "clear the task roll_back" in report["message"], report

    state, report = clear(scene, "deploy", run_id, "roll_back")

    assert (state, report["result"]) == ("failed", "rolled_back"), report
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=report["checkpoint"]["held"])
