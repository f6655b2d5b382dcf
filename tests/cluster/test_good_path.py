"""A deployment that succeeds: the standby goes on, and nothing is left behind."""

from __future__ import annotations

from tests.cluster.scene import GOOD_MIGRATION, Scene
from tests.cluster.verdict import leftovers, verdict


def test_a_good_deployment_reaches_every_member_after_the_resume(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint(label="release 1.2")
    held, record = scene.held, scene.record

    new = scene.deploy(GOOD_MIGRATION)
    assert new != scene.rows
    verdict(lab, before=scene.fresh, rows=new, leader=record["leader"], timeline=scene.timeline, held=held)
    tags = (lab.patroni(held) or {})["tags"]
    assert {name: tags.get(f"bluegreen_{name}") for name in ("id", "xid", "lsn", "timeline", "taken_at", "label")} == {
        "id": record["id"],
        "xid": str(record["xid"]),
        "lsn": record["lsn"],
        "timeline": str(scene.timeline),
        "taken_at": record["taken_at"],
        "label": "release 1.2",
    }
    assert tags["nofailover"] and tags["noloadbalance"] and tags["nosync"]
    for name in lab.names:
        journal = scene.journal(name)
        assert (journal["id"], journal["phase"], journal["xid"]) == (record["id"], "held", record["xid"]), name
        path = lab.nodes[name].patroni_config
        assert path.with_name(path.name + ".bluegreen-journal").stat().st_mode & 0o777 == 0o600
    assert scene.locks() == []

    report = scene.must("resume", checkpoint=record["id"])

    assert report["result"] == "resumed"
    verdict(lab, before=scene.fresh, rows=new, leader=record["leader"], timeline=scene.timeline)
    assert [name for name in lab.names if leftovers(lab.nodes[name])] == []
