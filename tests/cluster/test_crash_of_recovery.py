"""The recovered server dies between the start of its new timeline and the checkpoint there.

The history file is there already and the files of the recovery are gone, while pg_control is on the old timeline: a
start as it is would replay the discarded transactions, beside a history file that says it was promoted at the mark.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lab.cluster import Lab
from tests.cluster.scene import Scene
from tests.cluster.test_runbook import run
from tests.cluster.verdict import contents, history_files, verdict

# what is replayed on the way to the mark takes long enough to find the process that makes the checkpoint
FILLER = "create table filler as select i, repeat('x', 200) from generate_series(1, 400000) i"
STANDBY = "Database cluster state:               in archive recovery"


@contextlib.contextmanager
def dies_before_its_checkpoint(lab: Lab, held: str, *, started_again: bool = False) -> Iterator[list[str]]:
    """Kill the server that recovers, once, in that moment; the list gets what pg_control says then.

    :param started_again: somebody starts it as it is, at once.
    """
    node, seen, end = lab.nodes[held], list[str](), threading.Event()
    before, known = lab.postmaster(held), set(history_files(node))

    def watch() -> None:
        checkpointer = None
        while not end.is_set() and checkpointer is None:
            pid = lab.postmaster(held)
            if pid not in (None, before):
                with contextlib.suppress(psutil.Error):
                    children = psutil.Process(pid).children()
                    checkpointer = next((one for one in children if "checkpointer" in "".join(one.cmdline())), None)
        if checkpointer is None:
            return
        checkpointer.suspend()
        while not end.is_set() and set(history_files(node)) <= known:
            time.sleep(0.001)
        # the rest of what is done before the checkpoint
        time.sleep(0.5)
        seen.append(lab.ssh(held, f"{lab.info['bin_dir']}/pg_controldata {node.data_dir}").stdout)
        server = psutil.Process(pid)
        command, owner = server.cmdline(), server.uids().real
        for process in (server, *server.children()):
            process.kill()
        if started_again:
            server.wait(10)
            as_owner = {"user": owner, "group": owner} if os.getuid() != owner else {}
            subprocess.Popen(
                command,
                cwd=node.data_dir,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **as_owner,
            )

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def begin(scene: Scene) -> set[str]:
    """A checkpoint with much to replay before it, and a bad deployment; return the known histories."""
    scene.lab.sql(scene.leader, FILLER, database="postgres")
    scene.checkpoint()
    scene.deploy_badly()
    return set(history_files(scene.lab.nodes[scene.held]))


def ended_at_the_mark(scene: Scene, seen: list[str], known: set[str]) -> None:
    """It was killed in that moment, and everybody has the old rows on the timeline after the dead one."""
    assert seen and STANDBY in seen[0], "the server was not killed between its new timeline and the checkpoint there"
    picture = verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert picture.members[scene.held].timeline == scene.timeline + 2
    assert len(set(history_files(scene.lab.nodes[scene.held])) - known) == 2


def test_a_rollback_recovers_once_more(scene: Scene) -> None:
    known = begin(scene)
    with dies_before_its_checkpoint(scene.lab, scene.held) as seen:
        scene.rollback()
    ended_at_the_mark(scene, seen, known)


@pytest.mark.whole
def test_the_runbook_recovers_once_more_when_it_is_run_again(scene: Scene, tmp_path: Path) -> None:
    known = begin(scene)
    path = scene.lab.nodes[scene.held].patroni_config
    text = path.with_name(path.name + ".bluegreen-runbook").read_text()
    with dies_before_its_checkpoint(scene.lab, scene.held) as seen:
        status, said = run(scene, text, tmp_path)
    assert status == 1, said
    assert f"{scene.held} has begun the timeline from the mark, but does not run as it must" in said, said
    status, said = run(scene, text, tmp_path)
    assert status == 0, said
    ended_at_the_mark(scene, seen, known)


@pytest.mark.whole
def test_who_was_started_past_the_mark_is_left_out_and_the_others_serve(scene: Scene) -> None:
    lab = scene.lab
    begin(scene)
    held, deployed = scene.held, contents(lab, scene.leader)
    with dies_before_its_checkpoint(lab, held, started_again=True) as seen:
        state, report = scene.run("rollback", **scene.rollback_conf())
    assert seen and STANDBY in seen[0]
    assert (state, report["result"]) == ("failed", "failed"), report
    assert "it is not on the timeline that began 'after transaction" in report["message"], report["message"]
    assert "The old cluster was put back into service" in report["message"], report["message"]
    assert f"checkpoint {scene.record['id']} is lost" in report["message"], report["message"]
    assert lab.postmaster(held) is None, "it was started as somebody's standby"
    others = [name for name in lab.names if name != held]
    assert [contents(lab, name) for name in others] == [deployed] * 2

    said = scene.refused("rollback", **scene.rollback_conf())
    assert f"checkpoint {scene.record['id']} is lost" in said, said

    node = lab.nodes[held]
    lab.ssh(held, f"rm -r {node.data_dir} && mv {node.patroni_config}.bluegreen-aside {node.patroni_config}")
    lab.start_patroni(held)
    lab.wait_healthy(90)
    scene.must("resume")
    verdict(lab, before=scene.fresh, rows=deployed)
