"""Airflow itself is down and the release is bad: the runbook beside the journal does it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from lab.standalone import Airflow
from tests.cluster.scene import LOCK, Scene, has, wait_for
from tests.cluster.test_archive import archive_everything
from tests.cluster.test_proof import edit_yaml
from tests.cluster.verdict import look, unchanged, verdict

STOPPED_BY_THE_TEST = 99


def take_locks_away(scene: Scene) -> None:
    """As the runbook says where the old cluster is brought back."""
    for node in scene.lab.nodes.values():
        node.patroni_config.with_name(node.patroni_config.name + LOCK).unlink()


def run(scene: Scene, text: str, folder: Path, *, before_step: int | None = None, confirm: str = "") -> tuple[int, str]:
    """Run a runbook as a person does; return its status and all that it says.

    :param before_step: it is interrupted where this step begins.
    :param confirm: what is typed, by default the cluster's name.
    """
    if before_step is not None:
        text, found = re.subn(rf"(?m)^ *step {before_step} ", rf"told=yes; exit {STOPPED_BY_THE_TEST}\n\g<0>", text)
        assert found == 1
    script = folder / "rollback.sh"
    script.write_text(text)
    done = subprocess.run(
        ["bash", str(script)],
        env={"PATH": "/usr/bin:/bin", "SSH": f"ssh -F {scene.lab.info['ssh_config']}"},
        input=(confirm or scene.lab.name) + "\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    return done.returncode, done.stdout


def rolled_back(scene: Scene) -> None:
    """Raise unless the whole cluster has the old rows, led by the member that was held."""
    scene.lab.wait_healthy(90)
    verdict(
        scene.lab,
        before=scene.fresh,
        rows=scene.rows,
        leader=scene.held,
        timeline=scene.timeline + 1,
        after_xid=scene.xid,
    )


def test_the_runbook_brings_the_old_rows_back_with_no_airflow_running(
    scene: Scene, standalone: Airflow, tmp_path: Path
) -> None:
    lab = scene.lab
    report = scene.checkpoint(label="a label with $(touch /tmp/no) and `this` @HBA@")
    path = lab.nodes[scene.held].patroni_config
    text = path.with_name(path.name + ".bluegreen-runbook").read_text()
    assert text == report["runbook"]
    passwords = {lab.info["password"], *lab.info["users"].values()}
    assert not [password for password in passwords if password in text]
    scene.deploy_badly()
    standalone.stop()
    try:
        status, said = run(scene, text, tmp_path)
    finally:
        standalone.start()
    assert status == 0, said[-6000:]
    assert not [password for password in passwords if password in said]
    assert f"{scene.held} has not replayed transaction {scene.xid}" in said
    assert "THE POINT OF NO RETURN IS PASSED" in said
    assert not Path("/tmp/no").exists()
    rolled_back(scene)


def test_the_runbook_changes_nothing_unless_the_clusters_name_is_typed(scene: Scene, tmp_path: Path) -> None:
    status, said = run(scene, scene.checkpoint()["runbook"], tmp_path, confirm="yes")
    assert status == 1
    assert "STOPPED in step 0: not confirmed; nothing was changed" in said
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, held=scene.held)


def test_the_runbook_stops_nothing_when_the_checkpoint_is_lost(scene: Scene, tmp_path: Path) -> None:
    lab, text = scene.lab, scene.checkpoint()["runbook"]
    new = scene.deploy_badly()
    edit_yaml(lab, scene.held, 'recovery_min_apply_delay: "20d"', 'recovery_min_apply_delay: "0"')
    wait_for("the held member replays the deployment", lambda: has(lab, scene.held, new))
    before = look(lab)

    status, said = run(scene, text, tmp_path)

    assert status == 1, said
    assert f"LOST: {scene.held} has replayed transaction {scene.xid}" in said
    assert "STOPPED in step 0: checkpoint" in said
    assert "Nothing was changed" in said
    unchanged(lab, before)


def test_the_runbook_stops_no_other_member_when_only_the_files_say_that_the_checkpoint_is_lost(
    scene: Scene, tmp_path: Path
) -> None:
    """The server cannot be asked, and what it has replayed reaches its files only when it stops."""
    lab, text = scene.lab, scene.checkpoint()["runbook"]
    new = scene.deploy_badly()
    edit_yaml(lab, scene.held, 'recovery_min_apply_delay: "20d"', 'recovery_min_apply_delay: "0"')
    wait_for("the held member replays the deployment", lambda: has(lab, scene.held, new))
    before = look(lab)

    status, said = run(scene, re.sub(r"(?m)^superuser=.*$", "superuser='nobody'", text), tmp_path)

    assert status == 1, said
    assert "does not answer over its socket" in said
    assert "LOST: " in said
    assert "Nothing was changed" in said or "No other member was stopped" in said
    config = lab.nodes[scene.held].patroni_config
    if "STOPPED in step 1" in said:
        # as the runbook says
        config.with_name(config.name + ".bluegreen-aside").rename(config)
        take_locks_away(scene)
        lab.start_patroni(scene.held)
    unchanged(lab, before, seconds=60)


def test_the_runbook_does_not_go_on_beside_a_patroni_that_was_not_stopped(scene: Scene, tmp_path: Path) -> None:
    lab, text = scene.lab, scene.checkpoint()["runbook"]
    scene.deploy_badly()
    before, old = look(lab), scene.leader

    text, found = re.subn(r"(?m)^stop='.*'$", "stop='echo no such service >&2; exit 5'", text)
    assert found == len(lab.names)
    status, said = run(scene, text, tmp_path)

    assert status == 1, said
    assert "no such service" in said
    assert f"STOPPED in step 1: Patroni still runs on {scene.held}" in said
    assert f"on {old}:" in said
    # as the runbook says
    config = lab.nodes[scene.held].patroni_config
    config.with_name(config.name + ".bluegreen-aside").rename(config)
    take_locks_away(scene)
    unchanged(lab, before)


@pytest.mark.whole
def test_an_interrupted_runbook_goes_on_when_it_is_run_again(scene: Scene, tmp_path: Path) -> None:
    """It is interrupted after each step, and begins at the top each time."""
    lab = scene.lab
    archive_everything(scene)
    text = scene.checkpoint()["runbook"]
    scene.deploy_badly()
    for step in range(1, 8):
        status, said = run(scene, text, tmp_path, before_step=step)
        assert status == STOPPED_BY_THE_TEST, f"before step {step}: {said[-6000:]}"
        if step == 4:
            assert list((lab.nodes[scene.held].data_dir / "pg_wal").glob("*.partial")), "the mark's file kept its name"
    status, said = run(scene, text, tmp_path)
    assert status == 0, said[-6000:]
    rolled_back(scene)

    before = look(lab)
    status, said = run(scene, text, tmp_path)
    assert status == 1
    assert f"STOPPED in step 0: {scene.held} holds no checkpoint {scene.record['id']}" in said
    unchanged(lab, before)


@pytest.mark.parametrize("step", [5, pytest.param(6, marks=pytest.mark.whole)])
def test_what_follows_a_step_after_the_promotion_can_be_done_much_later(
    scene: Scene, tmp_path: Path, step: int
) -> None:
    """The recovered server keeps running: nobody stops it once more."""
    text = scene.checkpoint()["runbook"]
    scene.deploy_badly()
    status, said = run(scene, text, tmp_path, before_step=step)
    assert status == STOPPED_BY_THE_TEST, said[-6000:]
    pid = scene.lab.postmaster(scene.held)
    status, said = run(scene, text, tmp_path)
    assert status == 0, said[-6000:]
    assert scene.lab.postmaster(scene.held) == pid, "the recovered server was started anew"
    rolled_back(scene)


@pytest.mark.whole
def test_the_runbook_after_a_switchover_goes_to_a_standby_that_its_owner_keeps_out_of_elections(
    scene: Scene, tmp_path: Path
) -> None:
    lab = scene.lab
    name = min(set(lab.names) - {scene.leader})
    edit_yaml(lab, name, "nofailover: false", "nofailover: true")
    owners = lab.nodes[name].patroni_config.read_text()
    wait_for("the tag", lambda: (lab.patroni(name) or {}).get("tags", {}).get("nofailover"))
    scene.fresh = look(lab)
    text = scene.checkpoint()["runbook"]
    assert scene.held == name, "holding it costs no failover candidate"
    leads = scene.third
    lab.patronictl("switchover", lab.name, "--candidate", leads, "--force").check_returncode()
    wait_for("another one leads", lambda: scene.leader == leads)
    scene.deploy_badly()

    status, said = run(scene, text, tmp_path)

    assert status == 0, said[-6000:]
    stopped = re.findall(r"(?m)^(\w+) is down", said)
    assert stopped[: len(lab.names)] == [name, scene.fresh.leader, leads], said
    assert "reinit" not in said and "keeps it out of elections" in said, said
    assert lab.nodes[name].patroni_config.read_text() == owners
    lab.wait_healthy(90)
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=name, after_xid=scene.xid)


def test_a_person_lets_the_standby_go_on_without_airflow(scene: Scene) -> None:
    """What docs/troubleshooting.md says, "Let the standby go on"."""
    lab = scene.lab
    scene.checkpoint()
    deployed = scene.deploy_badly()
    path = lab.nodes[scene.held].patroni_config

    path.with_name(f"{path.name}.bluegreen-original").rename(path)
    lab.patronictl("reload", lab.name, scene.held, "--force").check_returncode()
    wait_for("the standby goes on", lambda: has(lab, scene.held, deployed))
    for name in sorted(lab.names, key=lambda name: name == scene.held):
        beside = lab.nodes[name].patroni_config
        for suffix in ("journal", "runbook"):
            beside.with_name(f"{beside.name}.bluegreen-{suffix}").unlink()

    verdict(lab, before=scene.fresh, rows=deployed)
    scene.checkpoint()
