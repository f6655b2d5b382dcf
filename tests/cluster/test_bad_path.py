"""A deployment that corrupts and drops data is undone, on every member."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cluster.scene import Scene, changed
from tests.cluster.verdict import history_files, verdict


@pytest.mark.parametrize("rejoin", ["rewind", "reclone"])
def test_a_rollback_brings_the_old_rows_back_on_every_member(scene: Scene, rejoin: str) -> None:
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    others = sorted(set(lab.names) - {held})
    new = scene.deploy_badly()
    verdict(lab, before=scene.fresh, rows=new, held=held)
    for name in others:
        lab.ssh(name, f"echo 'before the rollback' > {lab.nodes[name].data_dir}/marker").check_returncode()

    report = scene.rollback(rejoin=rejoin)

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, timeline=scene.timeline + 1, after_xid=scene.xid)
    # one more line only: nobody else was promoted on the way (H5a)
    old, now = history_files(lab.nodes[others[0]]), history_files(lab.nodes[held])
    assert set(now) - set(scene.fresh.members[held].histories) == {f"{scene.timeline + 1:08X}.history"}
    assert old[f"{scene.timeline + 1:08X}.history"].strip().splitlines()[-1] == report["branch_line"]
    assert {name: report["members"][name].get("rejoined_by") for name in others} == dict.fromkeys(others, rejoin)
    # the migration is one transaction, the dropped database another
    assert report["discarded"]["transactions"] >= 2
    assert report["discarded"]["wal_bytes"] > 100_000
    if rejoin == "reclone":
        assert not [name for name in others if (lab.nodes[name].data_dir / "marker").exists()]


def test_a_second_run_goes_on_where_patroni_was_started_on_the_new_leader(scene: Scene, registry: Path) -> None:
    """The first run fails after the start, at the write that proves the takeover."""
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    run_id = scene.trigger("rollback", **scene.rollback_conf())
    scene.wait_phase("promoted")
    with changed(registry, lab.name, postgres_conn_id="test_there_is_none"):
        state = scene.airflow.wait("bluegreen_rollback", run_id, seconds=400)
    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")
    assert state == "failed" and "'test_there_is_none' cannot be used" in report["message"], report
    assert "there is only forward" in report["message"] and scene.task("rollback", run_id, "start_leader") == "failed"
    assert lab.leader() == scene.held

    scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


@pytest.mark.whole
def test_members_that_are_not_shut_down_cleanly_are_rewound(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    others = scene.spoil_shutdowns()

    report = scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert {name: report["members"][name].get("rejoined_by") for name in others} == dict.fromkeys(others, "rewind")
    for name in others:
        assert any(f"{name} was not shut down cleanly" in warning for warning in report["warnings"]), report["warnings"]
