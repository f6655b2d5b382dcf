"""The good path, the bad path with both rejoins, and a restart of the held standby, on this lab's server."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.cluster import Lab
from lab.standalone import read_environment
from ruamel.yaml import YAML
from tests.cluster.scene import GOOD_MIGRATION, Scene, changed, has, wait_for
from tests.cluster.test_runbook import run
from tests.cluster.verdict import history_files
from tests.versions.verdict import verdict

from bluegreen.recovery.versions import HoldMechanism, ServerVersion


def server(lab: Lab) -> ServerVersion:
    """The version of the servers."""
    return ServerVersion(int(lab.value(lab.wait_leader(), "select current_setting('server_version_num')")))


def restart(lab: Lab, name: str) -> None:
    """Restart PostgreSQL on a member through Patroni."""
    answer = lab.http.post(f"{lab.nodes[name].rest}/restart", json={}, timeout=60)
    assert answer.status_code == 200, answer.text
    wait_for(f"{name} answers", lambda: (lab.patroni(name) or {}).get("state") == "running")


def test_a_good_deployment_reaches_every_member_after_the_resume(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint(label="release 1.2")
    held = scene.held
    new = scene.deploy(GOOD_MIGRATION)
    verdict(lab, before=scene.fresh, rows=new, timeline=scene.timeline, held=held)

    report = scene.must("resume", checkpoint=scene.record["id"])

    assert report["result"] == "resumed"
    verdict(lab, before=scene.fresh, rows=new, leader=scene.record["leader"], timeline=scene.timeline)
    assert scene.locks() == []


@pytest.mark.parametrize("rejoin", ["rewind", "reclone"])
def test_a_rollback_brings_the_old_rows_back_on_every_member(scene: Scene, rejoin: str) -> None:
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    others = sorted(set(lab.names) - {held})
    new = scene.deploy_badly()
    verdict(lab, before=scene.fresh, rows=new, held=held)

    report = scene.rollback(rejoin=rejoin)

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, timeline=scene.timeline + 1, after_xid=scene.xid)
    assert {name: report["members"][name].get("rejoined_by") for name in others} == dict.fromkeys(others, rejoin)
    now = history_files(lab.nodes[held])[f"{scene.timeline + 1:08X}.history"]
    assert now.strip().splitlines()[-1] == report["branch_line"]


def test_the_runbook_brings_the_old_rows_back_on_every_member(scene: Scene, tmp_path: Path) -> None:
    lab = scene.lab
    text = scene.checkpoint()["runbook"]
    scene.deploy_badly()

    status, said = run(scene, text, tmp_path)

    assert status == 0, said[-6000:]
    assert "THE POINT OF NO RETURN IS PASSED" in said
    lab.wait_healthy(90)
    leader, timeline = scene.held, scene.timeline + 1
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=leader, timeline=timeline, after_xid=scene.xid)


def test_members_that_are_not_shut_down_cleanly_are_rewound(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    others = scene.spoil_shutdowns()

    report = scene.rollback(rejoin="rewind")

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert {name: report["members"][name].get("rejoined_by") for name in others} == dict.fromkeys(others, "rewind")


def test_a_member_that_was_rewound_and_not_started_is_not_rewound_again(scene: Scene, run_folder: Path) -> None:
    """A second rewind would end the first one's recovery with a checkpoint that the leader's WAL does not have."""
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    registry = Path(read_environment(run_folder)["BLUEGREEN_CLUSTERS"])
    node = YAML().load(registry)["clusters"][lab.name]["node"]
    once = f"test {{member}} != {scene.held} && mkdir {node['patroni_config']}.tried && exit 1; "

    with changed(registry, lab.name, node={"start": once + node["start"]}):
        report = scene.rollback(rejoin="rewind")

    others = sorted(set(lab.names) - {scene.held})
    for name in others:
        lab.nodes[name].patroni_config.with_name("patroni.yml.tried").rmdir()
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert {name: report["members"][name].get("rejoined_by") for name in others} == dict.fromkeys(others, "rewind")


def test_members_that_a_person_has_brought_back_meanwhile_have_every_database(scene: Scene, run_folder: Path) -> None:
    """Patroni rewinds them then, and ``pg_rewind`` before 14 leaves out the PG_VERSION of a dropped database."""
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    others = sorted(set(lab.names) - {scene.held})
    registry = Path(read_environment(run_folder)["BLUEGREEN_CLUSTERS"])
    start = YAML().load(registry)["clusters"][lab.name]["node"]["start"]
    person = f"until curl -sf {lab.nodes[scene.held].rest}/primary; do sleep 0.2; done >/dev/null; "
    for name in others:
        path = lab.nodes[name].patroni_config
        person += f"mv {path}.bluegreen-aside {path}; {lab.info['ctl']} start {name}; "
    person += (
        f'until curl -s {lab.nodes[scene.held].rest}/cluster | grep -c \'"streaming".*"streaming"\'; do sleep 0.2; done'
    )

    with changed(registry, lab.name, node={"start": f"{start}; if test {{member}} = {scene.held}; then {person}; fi"}):
        report = scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    found = {name: report["members"][name].get("rejoined_by") for name in others}
    assert found == dict.fromkeys(others, "already back"), found


def test_a_held_standby_that_was_restarted_is_rolled_back_to_or_called_lost(scene: Scene) -> None:
    """A delay survives a restart of PostgreSQL; a pause, before 12, does not (hazard H1)."""
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    new = scene.deploy_badly()
    verdict(lab, before=scene.fresh, rows=new, held=held)

    restart(lab, held)

    if server(lab).hold_mechanism is HoldMechanism.REPLAY_PAUSE:
        wait_for("the restarted standby has applied everything", lambda: has(lab, held, new))
        sentence = scene.refused("rollback", **scene.rollback_conf())
        assert f"checkpoint {scene.record['id']} is lost" in sentence, sentence
        scene.must("resume", checkpoint=scene.record["id"])
        verdict(lab, before=scene.fresh, rows=new, leader=scene.record["leader"], timeline=scene.timeline)
        return
    verdict(lab, before=scene.fresh, rows=new, held=held, held_streams=False)
    scene.rollback()
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, timeline=scene.timeline + 1, after_xid=scene.xid)


def test_a_held_standby_that_was_restarted_can_be_resumed(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    new = scene.deploy(GOOD_MIGRATION)
    restart(lab, held)

    scene.must("resume", checkpoint=scene.record["id"])

    verdict(lab, before=scene.fresh, rows=new, leader=scene.record["leader"], timeline=scene.timeline)
