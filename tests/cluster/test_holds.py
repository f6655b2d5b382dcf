"""A hold lasts: through Patroni's loops and through restarts (hazard H1)."""

from __future__ import annotations

import time

import pytest
from tests.cluster.scene import Scene, has, wait_for
from tests.cluster.verdict import contents, verdict

LOOPS_SECONDS = 14  # more than two loop_waits of 5 s


def test_a_hold_outlasts_patronis_loops(scene: Scene) -> None:
    scene.checkpoint()
    new = scene.deploy_badly()
    time.sleep(LOOPS_SECONDS)
    verdict(scene.lab, before=scene.fresh, rows=new, held=scene.held, seconds=5)

    scene.rollback()

    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


def test_a_hold_outlasts_restarts_of_postgresql_of_patroni_and_of_both(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    new = scene.deploy_badly()

    def is_back() -> bool:
        return (lab.patroni(held) or {}).get("state") == "running" and has(lab, held, scene.rows)

    server = lab.postmaster(held)
    lab.patronictl("restart", lab.name, held, "--force").check_returncode()
    wait_for(
        "PostgreSQL of the held member restarted", lambda: lab.postmaster(held) not in (None, server) and is_back()
    )
    lab.kill_patroni(held)
    lab.start_patroni(held)
    wait_for("Patroni of the held member is back", is_back)
    lab.stop_patroni(held)
    assert lab.postmaster(held) is None
    lab.start_patroni(held)
    wait_for("both are back", is_back)
    time.sleep(LOOPS_SECONDS)
    verdict(lab, before=scene.fresh, rows=new, held=held, held_streams=False, seconds=5)

    scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)


@pytest.mark.whole
def test_a_second_rollback_after_a_first(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint(label="first")
    scene.deploy_badly()
    scene.rollback()
    first = scene.held
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=first, timeline=scene.timeline + 1, after_xid=scene.xid)

    between = scene.deploy("insert into orders values (1001, 'between', 1)")
    scene.checkpoint(label="second")
    assert scene.held != first
    scene.deploy_badly()
    scene.rollback()

    verdict(lab, before=scene.fresh, rows=between, leader=scene.held, timeline=scene.timeline + 2, after_xid=scene.xid)


def lose_slot(scene: Scene) -> None:
    """Take a checkpoint and deploy, on a leader that keeps little WAL back and has lost the held standby's slot."""
    scene.keep_little_wal()
    scene.checkpoint()
    scene.stop_receiving()
    scene.deploy_badly()
    scene.outrun_slot()


def test_a_standby_whose_wal_is_gone_is_cloned_by_resume(scene: Scene) -> None:
    lose_slot(scene)
    leader, held = scene.leader, scene.held
    rows = contents(scene.lab, leader)

    report = scene.must("resume")

    assert report["members"][held]["rejoined_by"] == "reclone", report["members"]
    assert any(f"{held} was cloned afresh: {leader} no longer has the WAL" in one for one in report["warnings"]), report
    verdict(scene.lab, before=scene.fresh, rows=rows)


@pytest.mark.whole
def test_a_standby_whose_slot_is_lost_can_still_be_rolled_back_to(scene: Scene) -> None:
    lose_slot(scene)

    scene.rollback()

    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
