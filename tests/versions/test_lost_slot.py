"""A released standby whose slot is lost is cloned, and has a slot again: by itself on old Patroni, too."""

from __future__ import annotations

from tests.cluster.scene import Scene
from tests.cluster.test_holds import lose_slot
from tests.cluster.verdict import contents
from tests.versions.verdict import verdict


def test_a_standby_whose_wal_is_gone_is_cloned_by_resume(scene: Scene) -> None:
    lab, leader = scene.lab, scene.leader
    lose_slot(scene)
    rows = contents(lab, leader)

    report = scene.must("resume")

    assert report["members"][scene.held]["rejoined_by"] == "reclone", report["members"]
    verdict(lab, before=scene.fresh, rows=rows)
    status = "select wal_status from pg_replication_slots where slot_name = %s"
    assert lab.sql(leader, status, [scene.held], database="postgres") == [("reserved",)]
