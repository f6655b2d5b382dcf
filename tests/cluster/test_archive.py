"""A shared archive: one folder, into which every member archives (hazard H12)."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import pytest
from tests.cluster.scene import Scene, wait_for
from tests.cluster.verdict import history_files, look, verdict


def archive_files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def archive_everything(scene: Scene) -> Path:
    """Turn on archiving into one folder; the cluster as it is then counts as the fresh one.

    The command fails as long as there is a file of that name and ``.closed``.
    """
    lab = scene.lab
    folder = Path(lab.info["directory"]) / "archive"
    place = shlex.quote(str(folder))
    change = {
        "postgresql": {
            "parameters": {
                "archive_mode": "on",
                "archive_command": f"test ! -e {place}.closed && test ! -f {place}/%f && cp %p {place}/%f",
            },
            "recovery_conf": {"restore_command": f"cp {place}/%f %p"},
        }
    }
    leader = scene.leader
    lab.http.patch(f"{lab.nodes[leader].rest}/config", json=change).raise_for_status()
    wait_for("Patroni wants a restart", lambda: (lab.patroni(leader) or {}).get("pending_restart"))
    lab.patronictl("restart", lab.name, "--force").check_returncode()
    lab.wait_healthy(60)
    lab.sql(leader, "select pg_switch_wal()")
    wait_for("the first archived file", lambda: archive_files(folder))
    wait_for("archive_mode everywhere", lambda: {lab.value(name, "show archive_mode") for name in lab.names} == {"on"})
    scene.fresh = look(lab)
    return folder


def test_a_rollback_that_fails_before_the_promotion_leaves_the_archive_and_brings_the_old_cluster_back(
    scene: Scene,
) -> None:
    lab = scene.lab
    folder = archive_everything(scene)
    standby = next(name for name in lab.names if name != scene.leader)
    # the held member's recovery will begin in another WAL file than the one that holds the mark
    lab.sql(scene.leader, "checkpoint")
    begun = lab.value(scene.leader, "select redo_lsn from pg_control_checkpoint()")
    query = "select pg_last_wal_replay_lsn() > %s::pg_lsn"
    wait_for("the standby replays the CHECKPOINT", lambda: lab.value(standby, query, [begun]))
    lab.sql(standby, "checkpoint")
    redo = lab.value(standby, "select redo_wal_file from pg_control_checkpoint()")
    lab.sql(scene.leader, "select pg_switch_wal()")
    wait_for("that file is archived", (folder / redo).exists)
    scene.checkpoint(standby=standby)
    held, old = scene.held, scene.leader
    new = scene.deploy_badly()
    lab.sql(old, "select pg_switch_wal()")
    before = archive_files(folder)
    timelines = {name[:8] for name in before}

    unreadable = lab.nodes[held].data_dir / "pg_wal" / redo
    hidden = [unreadable, folder / redo]
    for path in hidden:
        path.chmod(0)  # no server can read it: the recovery fails after its start
    run_id = scene.trigger("rollback", **scene.rollback_conf())
    try:
        ended = wait_for("the recovery ended", lambda: scene.task("rollback", run_id, "recover"), seconds=200)
    finally:
        for path in hidden:
            path.chmod(0o600)
    state = scene.airflow.wait("bluegreen_rollback", run_id, seconds=300)
    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")

    assert ended == "failed"
    assert (state, report["result"]) == ("failed", "failed")
    assert "put back into service" in report["message"], report["message"]
    # the log of the server that failed stays as evidence until the checkpoint ends
    evidence = frozenset({".bluegreen-log"})
    verdict(lab, before=scene.fresh, rows=new, held=held, held_streams=False, held_leftovers=evidence, seconds=60)
    assert (scene.journal()["phase"], scene.journal()["id"]) == ("held", scene.record["id"])
    now = archive_files(folder)
    assert {name: now.get(name) for name in before} == before, "archived files were changed"
    promoted = {name for name in now if name[:8] not in timelines and "after transaction" in _text(folder / name)}
    assert promoted == set(), "the failed rollback archived a timeline"
    ours = {name for name in set(now) - set(before) if name[:8] not in _known_timelines(scene)}
    assert ours == set(), "the archive has files of a timeline that the old cluster does not know"

    scene.rollback()

    picture = verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)
    last = archive_files(folder)
    assert {name: last.get(name) for name in now} == now, "archived files were changed"
    history = f"{picture.members[held].timeline:08X}.history"
    wait_for("the new timeline's history in the archive", lambda: history in archive_files(folder))
    assert _text(folder / history) == picture.members[held].history


def _known_timelines(scene: Scene) -> set[str]:
    leader = scene.lab.nodes[scene.leader]
    current = f"{look(scene.lab).members[leader.name].timeline:08X}"
    return {current, "00000001", *(name[:8] for name in history_files(leader))}


def _text(path: Path) -> str:
    return path.read_text() if path.suffix == ".history" else ""


@pytest.mark.whole
def test_an_archive_that_takes_nothing_from_the_new_leader_is_told(scene: Scene) -> None:
    folder = archive_everything(scene)
    scene.checkpoint()
    scene.deploy_badly()
    closed = folder.with_name(folder.name + ".closed")
    closed.touch()
    try:
        report = scene.rollback()
    finally:
        closed.unlink()
    (warning,) = (one for one in report["warnings"] if "could not archive" in one)
    assert warning.startswith(f"{scene.held} could not archive 0000000")
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
