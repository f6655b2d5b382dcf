"""The old leader's host is gone: the rollback refuses until a person declares it, and finishes when it is back."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.scene import wait_for
from tests.cluster.verdict import verdict
from tests.faults import damage
from tests.faults.breakpoints import Breakpoints
from tests.faults.conftest import Stage


def test_a_declared_host_is_left_out_and_rejoins_later(stage: Stage, points: Breakpoints, tmp_path: Path) -> None:
    scene = stage.set("rollback")
    lab, gone = stage.lab, str(scene.fresh.leader)
    mend = damage.host_gone(damage.Place(scene, points, gone, tmp_path, None))
    try:
        said = scene.refused("rollback", **scene.rollback_conf())
        assert gone in said, said
        assert "hosts_down" in said, said
        report = scene.rollback(hosts_down=[gone])
        assert any(gone in warning and "hosts_down" in warning for warning in report["warnings"]), report["warnings"]
        third = scene.who("third")
        wait_for("the new leader leads", lambda: lab.leader() == scene.held)
        assert scene.journal()["phase"] == "taken_over", "the journal must live until the last member is back"
        assert {one["name"] for one in lab.cluster()["members"]} >= {scene.held, third}
    finally:
        # a careful person: the host comes back with its configuration aside
        config = lab.nodes[gone].patroni_config
        config.rename(config.with_name(config.name + ".bluegreen-aside"))
        mend()
    report = scene.rollback()
    assert gone in report["members"]
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
