"""Airflow dies while a deployment runs, or waits in the triggerer for the run that it has triggered."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest
from lab.standalone import Airflow
from tests.cluster.scene import BAD_MIGRATION, Scene, wait_for
from tests.cluster.verdict import contents, verdict
from tests.faults import damage
from tests.faults.breakpoints import Breakpoints, Point
from tests.faults.conftest import Stage

WAITS = 300


def airflow_dies(scene: Scene, points: Breakpoints, stoppable: Airflow, folder: Path, child: Point, waiter: str) -> str:
    """Run a bad deployment; kill all of Airflow while a child of it stands at a point; return the deployment's run."""
    points.arm(child)
    run_id = scene.trigger("deploy", sql=BAD_MIGRATION, checks=["select count(*) = 0 from orders where total = 0"])
    wait_for(f"{child.task} reaches its point", lambda: points.reached() is not None, WAITS)
    wait_for(f"{waiter} waits in the triggerer", lambda: scene.is_in("deploy", run_id, waiter, "deferred"))
    damage.airflow_killed(damage.Place(scene, points, scene.lab.names[0], folder, stoppable))
    points.clear()
    return run_id


@pytest.mark.whole
@pytest.mark.parametrize(
    ("child", "waiter"),
    [
        (Point("bluegreen_checkpoint", "hold", "task", "begin"), "held"),
        (Point("bluegreen_rollback", "recover", "task", "begin"), "rolled_back"),
    ],
    ids=["checkpoint", "rollback"],
)
def test_a_deployment_whose_airflow_dies_while_it_waits_is_rolled_back_all_the_same(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path, child: Point, waiter: str
) -> None:
    scene = stage.set("checkpoint")

    run_id = airflow_dies(scene, points, stoppable, tmp_path, child, waiter)

    state = scene.airflow.wait("bluegreen_deploy", run_id, seconds=WAITS)
    report = scene.airflow.xcom("bluegreen_deploy", run_id, "report")
    assert report and (state, report["result"]) == ("failed", "rolled_back"), report
    scene.record = report["checkpoint"]
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert contents(scene.lab, scene.held) == scene.rows


@pytest.mark.whole
def test_a_deployment_that_is_cut_off_does_not_run_a_second_time(stage: Stage, stoppable: Airflow) -> None:
    scene = stage.set("checkpoint")
    sleeps = "select 1 from pg_stat_activity where query like 'select pg_sleep(900)%' and pid <> pg_backend_pid()"
    text = "set role release; update orders set total = total * 2; select pg_sleep(900);"
    run_id = scene.trigger("deploy", sql=text, checks=["select true"])
    leader = scene.leader
    wait_for("the deployment is half-way", lambda: scene.lab.sql(leader, sleeps, database="postgres"), WAITS)
    killed = stoppable.processes()
    assert killed
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(killed, 10)
    stoppable.start()

    state = scene.airflow.wait("bluegreen_deploy", run_id, seconds=WAITS)
    report = scene.airflow.xcom("bluegreen_deploy", run_id, "report")
    assert report and (state, report["result"]) == ("failed", "rolled_back"), report
    assert "it does not run a second time" in report["message"], report
    scene.record = report["checkpoint"]
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
