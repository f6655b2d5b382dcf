"""Synchronous replication: a commit waits for a standby, which the hold must not be (hazard H8)."""

from __future__ import annotations

import pytest
from tests.cluster.scene import GOOD_MIGRATION, Scene, wait_for
from tests.versions.people import configure, settled, synchronous, wait_synchronous
from tests.versions.verdict import verdict

MODES = {
    "on": {"synchronous_mode": True},
    "strict": {"synchronous_mode": True, "synchronous_mode_strict": True},
}


@pytest.fixture(params=list(MODES))
def synced(scene: Scene, request: pytest.FixtureRequest) -> Scene:
    """A fresh cluster in synchronous mode."""
    configure(scene.lab, MODES[request.param])
    wait_synchronous(scene.lab)
    wait_for(
        "the leader waits for it",
        lambda: scene.lab.value(scene.leader, "show synchronous_standby_names", database="postgres"),
    )
    settled(scene)
    return scene


def test_the_synchronous_standby_is_not_held_and_commits_go_on(synced: Scene) -> None:
    lab = synced.lab
    (before,) = synchronous(lab)
    assert f"{before} is the only synchronous standby" in synced.refused("checkpoint", label="x", standby=before)

    synced.checkpoint()

    assert synced.held != before
    new = synced.deploy(GOOD_MIGRATION)
    assert synchronous(lab) == [before]
    synced.must("resume", checkpoint=synced.record["id"])
    verdict(lab, before=synced.fresh, rows=new, leader=synced.record["leader"], timeline=synced.timeline)


def test_a_standby_that_commits_wait_for_without_patroni_is_not_held(scene: Scene) -> None:
    lab, leader = scene.lab, scene.leader
    waited_for, other = (name for name in lab.names if name != leader)
    names = {"synchronous_standby_names": waited_for, "synchronous_commit": "remote_apply"}
    configure(lab, {"postgresql": {"parameters": names}})
    state = "select application_name from pg_stat_replication where sync_state = 'sync'"
    wait_for("commits wait for it", lambda: lab.sql(leader, state, database="postgres") == [(waited_for,)])
    settled(scene)

    sentence = scene.refused("checkpoint", label="x", standby=waited_for)
    assert f"commits wait for {waited_for}" in sentence and "Patroni does not manage" in sentence, sentence

    scene.checkpoint(standby=other)
    new = scene.deploy(GOOD_MIGRATION)
    scene.must("resume", checkpoint=scene.record["id"])
    verdict(lab, before=scene.fresh, rows=new, leader=leader, timeline=scene.timeline)


def test_a_mark_waits_for_no_standby(scene: Scene) -> None:
    """The one that commits wait for stands still, as a held one does under remote_apply."""
    lab, leader = scene.lab, scene.leader
    names = {"synchronous_standby_names": "nobody", "synchronous_commit": "remote_apply"}
    configure(lab, {"postgresql": {"parameters": names}})
    wait_for("commits wait", lambda: lab.value(leader, "show synchronous_standby_names", database="postgres"))

    scene.checkpoint()

    configure(lab, {"postgresql": {"parameters": dict.fromkeys(names)}})
    scene.must("resume", checkpoint=scene.record["id"])


def test_a_rollback_ends_in_synchronous_mode(synced: Scene) -> None:
    lab = synced.lab
    synced.checkpoint()
    synced.deploy_badly()

    synced.rollback()

    verdict(lab, before=synced.fresh, rows=synced.rows, leader=synced.held, after_xid=synced.xid)
    (standby,) = wait_synchronous(lab)
    assert standby != synced.held
    names = wait_for(
        "the new leader waits for it",
        lambda: lab.value(synced.leader, "show synchronous_standby_names", database="postgres"),
    )
    assert standby in names
