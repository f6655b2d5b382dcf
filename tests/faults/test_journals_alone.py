"""Airflow dies in the middle of a rollback, and its database with it: the journals are enough."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from lab.client import lab_client
from lab.standalone import Airflow
from tests.cluster.scene import Scene, wait_for
from tests.cluster.verdict import verdict

DAGS = ("bluegreen_checkpoint", "bluegreen_resume", "bluegreen_rollback")


def crash(airflow: Airflow) -> None:
    """SIGKILL to everything of this Airflow, tasks included."""
    group = airflow.group()
    assert group
    head = psutil.Process(group)
    for process in (head, *head.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    airflow.stop()


def forget(airflow: Airflow) -> None:
    """Make its database new."""
    command = [str(Path(sys.executable).parent / "airflow"), "db", "reset", "-y"]
    done = subprocess.run(command, env=airflow.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def begin_anew(scene: Scene, airflow: Airflow) -> None:
    """Start it, and wait until it knows the DAGs."""
    airflow.start()
    scene.airflow = lab_client(airflow.run)
    wait_for("the DAGs are known", lambda: all(_exists(scene, dag) for dag in DAGS), seconds=120, every=1)
    scene.airflow.request("PATCH", "dags/bluegreen_monitor", {"is_paused": True})


@pytest.mark.parametrize("phase", [pytest.param("stopping", marks=pytest.mark.whole), "promoted"])
def test_a_second_run_finishes_a_rollback_from_the_journals_alone(scene: Scene, stoppable: Airflow, phase: str) -> None:
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    scene.deploy_badly()
    conf = scene.rollback_conf()

    run_id = scene.trigger("rollback", **conf)
    scene.wait_phase(phase)
    crash(stoppable)
    lab.stop_patroni(*lab.names)  # whatever was still running
    forget(stoppable)
    begin_anew(scene, stoppable)
    assert scene.locks(), "the dead run's lock is still there"

    sentence = scene.refused("rollback", **conf)
    assert run_id in sentence and "break_lock" in sentence, sentence
    report = scene.rollback(break_lock=run_id)

    assert any(run_id in warning for warning in report["warnings"]), report["warnings"]
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)
    assert scene.locks() == []


def test_a_checkpoint_is_found_again_by_an_airflow_that_never_took_it(scene: Scene, stoppable: Airflow) -> None:
    scene.checkpoint()
    scene.deploy_badly()

    crash(stoppable)
    forget(stoppable)
    begin_anew(scene, stoppable)

    sentence = scene.refused("checkpoint")
    assert scene.record["id"] in sentence, sentence
    scene.rollback()
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


def _exists(scene: Scene, dag: str) -> bool:
    return scene.airflow.request("GET", f"dags/{dag}").status_code == 200
