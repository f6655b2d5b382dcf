"""The monitor says what is wrong, with figure, limit and advice, and lets the standby go before a disk is full."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.scene import LOCK, Scene, change, changed, wait_for
from tests.cluster.test_holds import lose_slot
from tests.cluster.verdict import contents, verdict


def look(scene: Scene, cluster: str) -> tuple[str, str, dict[str, Any]]:
    """Have the monitor look; return state, problems and figures of one cluster's tasks.

    Unpausing it starts the run of this minute too, or goes on with one that was begun before, so what any look since
    then says counts.
    """
    airflow = scene.airflow
    since = datetime.now(UTC).isoformat()
    airflow.request("PATCH", "dags/bluegreen_monitor", {"is_paused": False})
    try:
        airflow.wait("bluegreen_monitor", airflow.trigger("bluegreen_monitor", {}), seconds=180)
    finally:
        airflow.request("PATCH", "dags/bluegreen_monitor", {"is_paused": True})
    runs = airflow.get("dags/bluegreen_monitor/dagRuns", order_by="-start_date", limit=5)["dag_runs"]
    states, problems, figures = set(), [], {}
    for run in reversed(runs):
        for task in airflow.tasks("bluegreen_monitor", run["dag_run_id"]):
            is_new = (task["start_date"] or "") >= since
            if is_new and task["task_id"] == "look" and task["rendered_map_index"] == cluster:
                states.add(task["state"])
                path = f"dags/bluegreen_monitor/dagRuns/{run['dag_run_id']}/taskInstances/look/xcomEntries"
                for key in ("problem", "return_value"):
                    answer = airflow.request("GET", f"{path}/{key}?map_index={task['map_index']}")
                    if answer.status_code == 200 and key == "problem":
                        problems.append(answer.json()["value"]["message"])
                    elif answer.status_code == 200:
                        figures = answer.json()["value"]
    assert states, f"the monitor did not look at {cluster}"
    return "failed" if "failed" in states else states.pop(), "; ".join(problems), figures


def test_a_healthy_cluster_with_a_checkpoint_gives_figures_and_no_problem(scene: Scene) -> None:
    scene.checkpoint()
    state, problem, figures = look(scene, scene.lab.name)
    assert (state, problem) == ("success", "")
    assert figures["checkpoint"]["id"] == scene.record["id"]
    held = figures["members"][scene.held]
    assert held["state"] == "streaming" and held["flush_lag_bytes"] == 0 and held["receiver"] == "streaming"
    assert held["slot_wal_bytes"] is not None
    assert all(0 < member["wal_free_percent"] <= 100 for member in figures["members"].values())


def test_a_lost_checkpoint_is_called_lost(scene: Scene) -> None:
    scene.checkpoint()
    node = scene.lab.nodes[scene.held]
    node.patroni_config.write_text(node.patroni_config.read_text().replace('"20d"', "0"))
    scene.lab.ssh(scene.held, f"curl -s -X POST {node.rest}/reload").check_returncode()
    wait_for(
        "the mark is replayed",
        lambda: scene.lab.value(scene.held, "select txid_snapshot_xmax(txid_current_snapshot()) > %s", (scene.xid,)),
    )
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed"
    assert f"LOST: checkpoint {scene.record['id']} is lost" in problem


@pytest.mark.whole
def test_a_checkpoint_that_outlives_its_deployment_is_told(scene: Scene) -> None:
    run_id = scene.deploying("sleep 300", ["select true"])
    # what a person can do in Airflow's UI: no task that would end the checkpoint is run any more
    answer = scene.airflow.request("PATCH", f"dags/bluegreen_deploy/dagRuns/{run_id}", {"state": "failed"})
    assert answer.status_code == 200, answer.text
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed"
    told = f"checkpoint {scene.record['id']} on {scene.held} is held for deploy"
    assert f"{told} (run {run_id}" in problem and "which has ended; run bluegreen_resume, or" in problem, problem
    scene.must("resume", checkpoint=scene.record["id"])
    state, problem, figures = look(scene, scene.lab.name)
    assert (state, problem) == ("success", "") and "checkpoint" not in figures
    verdict(scene.lab, before=scene.fresh, rows=scene.rows)


def test_before_a_disk_is_full_the_hold_is_released_loudly(scene: Scene, registry: Path) -> None:
    scene.checkpoint()
    rows = scene.deploy_badly()
    change(registry, scene.lab.name, limits={"disk_free_percent": 99})
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed"
    assert f"RELEASED: the hold of checkpoint {scene.record['id']} on {scene.held} was released" in problem
    assert "the limit is 99 %" in problem
    wait_for("the standby has caught up", lambda: not scene.lab.trouble())
    verdict(scene.lab, before=scene.fresh, rows=rows)


def test_an_unfinished_hold_is_told_and_released_before_a_disk_is_full(scene: Scene, registry: Path) -> None:
    scene.checkpoint()
    rows = scene.deploy_badly()
    for name in scene.lab.names:
        path = scene.journal_path(name)
        path.write_text(json.dumps({**json.loads(path.read_text()), "phase": "holding"}))
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed" and "'holding', and no run works on it: the standby may be held" in problem, problem
    change(registry, scene.lab.name, limits={"disk_free_percent": 99})
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed" and "RELEASED" in problem, problem
    wait_for("the standby has caught up", lambda: not scene.lab.trouble())
    verdict(scene.lab, before=scene.fresh, rows=rows)


def test_a_lock_of_an_unknown_run_is_told_and_does_not_blind(scene: Scene, registry: Path) -> None:
    scene.checkpoint()
    path = scene.lab.nodes[scene.held].patroni_config
    lock = path.with_name(path.name + LOCK)
    lock.write_text(json.dumps({"operation": "resume", "dag_id": "bluegreen_resume", "run_id": "long_gone"}))
    change(registry, scene.lab.name, limits={"disk_free_percent": 99}, auto_release=False)
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed" and "start the next run with break_lock = long_gone" in problem, problem
    assert "the limit is 99 %" in problem
    assert "locked by resume (run long_gone" in scene.refused("resume")
    scene.must("resume", break_lock="long_gone")
    assert not lock.exists()


@pytest.mark.whole
def test_journals_that_differ_do_not_blind(scene: Scene, registry: Path) -> None:
    scene.checkpoint()
    path = scene.journal_path(scene.third)
    text = path.read_text()
    path.write_text(text.replace(scene.record["id"], "bg_20200101_000000_000000"))
    change(registry, scene.lab.name, limits={"disk_free_percent": 99})
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed" and "found journals of different checkpoints" in problem, problem
    assert "the limit is 99 %" in problem and "RELEASED" not in problem, problem
    assert "found journals of different checkpoints" in scene.refused("resume")
    path.write_text(text)
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, held=scene.held)


@pytest.mark.whole
def test_a_released_standby_that_cannot_stream_is_left_to_a_resume(scene: Scene, registry: Path) -> None:
    lose_slot(scene)
    rows = contents(scene.lab, scene.leader)
    with changed(registry, scene.lab.name, limits={"disk_free_percent": 99}):
        state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed" and "RELEASED" in problem and "its journal was not removed" in problem, problem
    assert scene.journal()["phase"] == "releasing"
    scene.must("resume")
    verdict(scene.lab, before=scene.fresh, rows=rows)


def test_without_auto_release_the_hold_stays(scene: Scene, registry: Path) -> None:
    scene.checkpoint()
    change(registry, scene.lab.name, limits={"disk_free_percent": 99}, auto_release=False)
    state, problem, _ = look(scene, scene.lab.name)
    assert state == "failed" and "RELEASED" not in problem and "make room, or end the hold" in problem
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, held=scene.held)


def test_an_unreachable_cluster_does_not_blind_the_others(scene: Scene, registry: Path) -> None:
    change(registry, "gone", patroni=["http://127.0.0.99:8008"], postgres_conn_id="lab_postgres", ssh_conn_id="lab_ssh")
    change(
        registry, "broken", patroni=["http://127.0.0.99:8008"], postgres_conn_id="lab_postgres", ssh_con_id="lab_ssh"
    )
    assert look(scene, scene.lab.name)[0] == "success"
    state, problem, _ = look(scene, "gone")
    assert state == "failed" and "no Patroni of cluster 'gone' answers" in problem
    state, problem, _ = look(scene, "broken")
    assert state == "failed" and "did you mean 'ssh_conn_id'" in problem


def test_the_disks_are_watched_while_no_patroni_answers(scene: Scene, registry: Path) -> None:
    scene.checkpoint()
    scene.lab.stop_patroni(*scene.lab.names)
    try:
        change(registry, scene.lab.name, limits={"disk_free_percent": 99})
        state, problem, _ = look(scene, scene.lab.name)
    finally:
        scene.lab.start_patroni(*scene.lab.names)
        scene.lab.wait_leader(90)
    assert state == "failed"
    assert f"no Patroni of cluster '{scene.lab.name}' answers" in problem
    assert problem.count("the limit is 99 % (limits.disk_free_percent)") >= len(scene.lab.names)
    assert "nothing is released by itself while no Patroni answers" in problem
    assert scene.journal()["phase"] == "held"


@pytest.mark.whole
def test_a_held_member_that_leaves_the_cluster_is_told_and_its_disk_is_watched(scene: Scene, registry: Path) -> None:
    scene.checkpoint()
    lab = scene.lab
    lab.kill_patroni(scene.held)
    try:
        wait_for(
            f"{scene.held} is not listed",
            lambda: scene.held not in lab.patronictl("list", "-f", "json", node=scene.leader).stdout,
            seconds=90,
        )
        change(registry, lab.name, limits={"disk_free_percent": 99}, auto_release=False)
        state, problem, _ = look(scene, lab.name)
    finally:
        lab.start_patroni(scene.held)
    assert state == "failed"
    assert f"{scene.held}, a member of checkpoint {scene.record['id']}, is not in the cluster" in problem, problem
    assert re.search(rf"{scene.held}: \S+ has [0-9.]+ % free", problem), problem
