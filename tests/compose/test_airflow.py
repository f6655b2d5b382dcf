"""Airflow's own parts die while it works: a worker, the scheduler, the metadata database."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest
from lab.compose.files import Place
from lab.compose.stack import container, docker, wait_airflow, wait_containers
from tests.cluster.scene import Scene
from tests.cluster.verdict import verdict
from tests.compose.test_hosts import instances, wait_task


def rolled_back(scene: Scene, run_id: str) -> None:
    """The run ends well, and the cluster is as it was before the deployment."""
    report = scene.finish("rollback", run_id)
    assert report["result"] == "rolled_back"
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


def wait_running(scene: Scene, run_id: str, task_id: str) -> dict[str, Any]:
    """Wait for a task of a rollback; return it while it runs.

    :raises AssertionError: it was over before anybody could look.
    """
    wait_task(scene, run_id, task_id)
    (task,) = instances(scene, run_id, task_id)
    assert task["state"] == "running", f"{task_id} was over before anything could be killed: {task}"
    return task


def begin(scene: Scene) -> str:
    """A checkpoint, a bad deployment, and a rollback that has begun."""
    scene.checkpoint()
    scene.deploy_badly()
    return scene.trigger("rollback", **scene.rollback_conf())


def workers_of(scene: Scene, run_id: str) -> dict[str, str]:
    """Which worker ran each task of a rollback."""
    tasks = scene.airflow.tasks("bluegreen_rollback", run_id)
    return {f"{one['task_id']}[{one['map_index']}]": one["hostname"] for one in tasks if one["hostname"]}


@pytest.mark.usefixtures("celery")
def test_tasks_are_spread_over_both_workers(scene: Scene) -> None:
    seen: set[str] = set()
    for _ in range(3):
        run_id = begin(scene)
        rolled_back(scene, run_id)
        seen |= set(workers_of(scene, run_id).values())
        if seen >= {"worker-1", "worker-2"}:
            return
    raise AssertionError(f"three rollbacks ran on {seen} only")


@pytest.mark.usefixtures("celery")
def test_a_task_whose_worker_is_killed_is_finished_by_the_other(scene: Scene) -> None:
    run_id = begin(scene)
    first = wait_running(scene, run_id, "stop")["hostname"]
    docker("kill", container(first))
    try:
        rolled_back(scene, run_id)
    finally:
        docker("start", container(first))
    (other,) = {"worker-1", "worker-2"} - {first}
    tries = scene.airflow.get(f"dags/bluegreen_rollback/dagRuns/{run_id}/taskInstances/stop/tries")["task_instances"]
    assert [one["hostname"] for one in tries] == [first, other], tries
    assert tries[-1]["state"] == "success", tries


def test_the_scheduler_is_killed_in_the_middle(scene: Scene) -> None:
    run_id = begin(scene)
    wait_running(scene, run_id, "recover")
    docker("kill", container("scheduler"))
    time.sleep(5)
    docker("start", container("scheduler"))
    wait_airflow(Place.load())
    begin_again = time.monotonic()
    rolled_back(scene, run_id)
    # by default Airflow looks for what a killed scheduler ran every five minutes
    assert time.monotonic() - begin_again < 180
    (task,) = instances(scene, run_id, "recover")
    # with LocalExecutor the task has died with the scheduler
    assert task["try_number"] == (1 if Place.load().celery else 2), task


def test_the_metadata_database_restarts_in_the_middle(scene: Scene) -> None:
    run_id = begin(scene)
    wait_task(scene, run_id, "recover")
    docker("restart", container("metadata"))
    wait_airflow(Place.load())
    rolled_back(scene, run_id)
    ended = datetime.fromisoformat(scene.airflow.get(f"dags/bluegreen_rollback/dagRuns/{run_id}")["end_date"])
    started = docker("inspect", "--format", "{{.State.StartedAt}}", container("metadata")).stdout.strip()
    assert datetime.fromisoformat(f"{started[:26]}+00:00") < ended, "the rollback was over before the restart"


def metadata(query: str) -> str:
    """Ask Airflow's own database."""
    script = 'PGPASSWORD=$METADATA_PASSWORD exec psql -XAtq -h 127.0.0.1 -U airflow -d airflow -c "$1"'
    return docker("exec", container("metadata"), "sh", "-c", script, "sh", query).stdout.strip()


def test_only_what_is_old_is_removed() -> None:
    metadata("insert into log (dttm, event) values (now() - interval '40 days', 'from long ago'), (now(), 'from now')")
    logs = "/opt/airflow/logs/dag_id=none"
    script = f"mkdir -p {logs} && touch {logs}/now.log && touch -d '40 days ago' {logs}/long-ago.log"
    docker("exec", container("maintenance"), "sh", "-c", script)
    docker("restart", container("maintenance"))
    wait_containers()
    assert metadata("select event from log where event like 'from %'") == "from now"
    assert docker("exec", container("maintenance"), "ls", logs).stdout.split() == ["now.log"]
    metadata("delete from log where event = 'from now'")
    docker("exec", container("maintenance"), "rm", "-r", logs)
