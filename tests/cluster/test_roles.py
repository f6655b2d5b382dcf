"""Who may do what in Airflow, and who is named afterwards."""

from __future__ import annotations

from pathlib import Path

from lab.client import lab_client
from tests.cluster.scene import Scene
from tests.cluster.verdict import look, unchanged

DAGS = ("checkpoint", "deploy", "resume", "rollback", "monitor")


def test_who_may_only_view_triggers_nothing(clean: Scene, run_folder: Path) -> None:
    viewer, before = lab_client(run_folder, "viewer"), look(clean.lab)
    assert viewer.request("GET", "dags/bluegreen_rollback").status_code == 200
    for dag in DAGS:
        body = {"conf": {"cluster": clean.lab.name}, "logical_date": None}
        assert viewer.request("POST", f"dags/bluegreen_{dag}/dagRuns", body).status_code == 403, dag
        assert viewer.request("PATCH", f"dags/bluegreen_{dag}", {"is_paused": True}).status_code == 403, dag
    assert viewer.request("GET", "connections").status_code == 403
    unchanged(clean.lab, before)


def test_a_rollback_says_who_asked_for_it_and_why(scene: Scene) -> None:
    scene.checkpoint()
    scene.deploy_badly()
    report = scene.rollback(reason="orders of customer 7 vanished")
    assert report["requested_by"] == "admin"
    assert report["reason"] == "orders of customer 7 vanished"
