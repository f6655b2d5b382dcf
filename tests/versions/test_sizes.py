"""Clusters of two and of five members."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cluster.scene import GOOD_MIGRATION, Scene
from tests.faults import damage
from tests.faults.breakpoints import Breakpoints
from tests.versions.people import configure, wait_synchronous
from tests.versions.verdict import verdict

NO_CANDIDATE = "no failover candidate is left"


def test_a_good_deployment(scene: Scene) -> None:
    lab = scene.lab
    warnings = scene.checkpoint()["warnings"]
    # said before the deployment begins, and only where it is so (hazard H6)
    assert any(NO_CANDIDATE in warning for warning in warnings) is (len(lab.names) == 2), warnings
    new = scene.deploy(GOOD_MIGRATION)
    verdict(lab, before=scene.fresh, rows=new, held=scene.held)
    scene.must("resume", checkpoint=scene.record["id"])
    verdict(lab, before=scene.fresh, rows=new, leader=scene.record["leader"], timeline=scene.timeline)


@pytest.mark.parametrize("rejoin", ["rewind", "reclone"])
def test_a_rollback(scene: Scene, rejoin: str) -> None:
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    scene.deploy_badly()
    report = scene.rollback(rejoin=rejoin)
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, timeline=scene.timeline + 1, after_xid=scene.xid)
    back = {name: one.get("rejoined_by") for name, one in report["members"].items()}
    assert back == {name: None if name == held else rejoin for name in lab.names}


def test_a_rollback_without_the_old_leaders_host(scene: Scene, tmp_path: Path) -> None:
    """In a cluster of two nobody is left to rejoin; what is left to do is told all the same."""
    lab = scene.lab
    scene.checkpoint()
    gone = scene.leader
    scene.deploy_badly()
    mend = damage.host_gone(damage.Place(scene, Breakpoints(tmp_path), gone, tmp_path, None))
    config = lab.nodes[gone].patroni_config
    try:
        report = scene.rollback(hosts_down=[gone])
        assert any("move its Patroni configuration aside" in line for line in report["warnings"]), report["warnings"]
        assert scene.journal()["phase"] == "taken_over" and scene.journal()["config_proven"]
    finally:
        config.rename(config.with_name(config.name + ".bluegreen-aside"))
        mend()
    scene.rollback()
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


def test_the_only_synchronous_standby_is_not_held(scene: Scene) -> None:
    """Two nodes: holding it could hang every commit (hazard H8). More: another one is chosen."""
    lab = scene.lab
    configure(lab, {"synchronous_mode": True})
    (synchronous,) = wait_synchronous(lab)
    if len(lab.names) == 2:
        sentence = scene.refused("checkpoint", label="x")
        assert f"{synchronous} is the only synchronous standby" in sentence, sentence
        return
    scene.checkpoint()
    assert scene.held != synchronous
