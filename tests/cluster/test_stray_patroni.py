"""Somebody starts a stopped member in the middle of a rollback (hazards H4 and H13)."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from lab.config import LabError
from tests.cluster.scene import Scene, wait_for
from tests.cluster.verdict import dcs, initialize_revision, verdict


def test_whoever_starts_a_stopped_member_in_the_middle_changes_nothing(scene: Scene) -> None:
    """H13: a reboot of a replica after its stop, and the old leader's service started before the takeover."""
    lab = scene.lab
    scene.checkpoint()
    held, old, third = scene.held, scene.leader, scene.third
    scene.deploy_badly()
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            down = scene.journal().get("phase") in ("recovering", "promoted")
            for name in (old, third):
                if down and lab.postmaster(name) and scene.journal().get("phase") in ("recovering", "promoted"):
                    seen.append(f"PostgreSQL of {name} ran in the middle of the rollback")
            if (leader := lab.leader()) and down and leader != held:
                seen.append(f"{leader} led in the middle of the rollback")
            time.sleep(0.05)

    def start(name: str) -> None:
        with contextlib.suppress(LabError):
            lab.start_patroni(name)

    run_id = scene.trigger("rollback", **scene.rollback_conf())
    watcher = threading.Thread(target=watch)
    scene.wait_phase("recovering", "promoted")
    watcher.start()
    try:
        start(third)
        scene.wait_phase("promoted", "taken_over")
        start(old)
        scene.finish("rollback", run_id)
    finally:
        over.set()
        watcher.join()

    assert sorted(set(seen)) == []
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)


def test_the_cluster_is_not_removed_while_a_patroni_runs(scene: Scene) -> None:
    """H4: a person brings the old leader back by hand; the rollback stops, and a second run finishes it."""
    lab = scene.lab
    scene.checkpoint()
    held, old = scene.held, scene.leader
    scene.deploy_badly()
    lab.sql(old, "select pg_create_physical_replication_slot('left_behind')")
    initialized = initialize_revision(lab)

    run_id = scene.trigger("rollback", **scene.rollback_conf())
    scene.wait_phase("promoted")
    config: Path = lab.nodes[old].patroni_config
    config.with_name(config.name + ".bluegreen-aside").rename(config)
    lab.start_patroni(old)
    ended = wait_for("the removal ended", lambda: scene.task("rollback", run_id, "remove_cluster"), seconds=200)
    assert ended == "failed", f"remove_cluster is {ended} although the Patroni of {old} runs"
    state = scene.airflow.wait("bluegreen_rollback", run_id, seconds=300)
    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")
    assert (state, report["result"]) == ("failed", "failed"), report
    assert "Patroni" in report["message"] and "there is only forward" in report["message"], report["message"]
    assert initialize_revision(lab) == initialized, "the cluster was removed from the DCS under a living leader"
    assert lab.leader() != held

    scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)
    assert initialize_revision(lab) != initialized, "the cluster was not initialized anew"
    assert "left_behind" not in dcs(lab).get("status", "")
    wait_for(
        "only members' slots",
        lambda: not lab.sql(held, "select 1 from pg_replication_slots where slot_name = 'left_behind'"),
    )
