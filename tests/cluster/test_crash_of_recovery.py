"""The recovered server dies between the start of its new timeline and the checkpoint there.

The history file is there already and the files of the recovery are gone, while pg_control is on the old timeline: a
start as it is would replay the discarded transactions, beside a history file that says it was promoted at the mark.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab.cluster import Lab
from tests.cluster.scene import Scene, has, wait_for
from tests.cluster.test_runbook import run
from tests.cluster.verdict import contents, history_files, look, verdict

# what is replayed on the way to the mark takes long enough to find the process that makes the checkpoint
FILLER = "create table filler as select i, repeat('x', 200) from generate_series(1, 400000) i"
STATES = {"before it": "in archive recovery", "during it": "shutting down"}
# of pg_control: what its server says of itself, a number
AT, SHUTTING_DOWN = 16, (3).to_bytes(4, sys.byteorder)


@contextlib.contextmanager
def dies_at_its_checkpoint(
    lab: Lab, held: str, when: str, *, times: int = 1, started_again: bool = False
) -> Iterator[list[str]]:
    """Kill the server that recovers in that moment; the list gets what pg_control says then, each time.

    :param when: one of STATES.
    :param times: how often; each try starts it anew.
    :param started_again: somebody starts it as it is, at once.
    """
    node, seen, end = lab.nodes[held], list[str](), threading.Event()
    control = node.data_dir / "global" / "pg_control"

    def reached(known: set[str]) -> bool:
        if when == "before it":
            return set(history_files(node)) > known
        with control.open("rb") as file:
            return file.read(AT + 4)[AT:] == SHUTTING_DOWN

    def watch() -> None:
        for _ in range(times):
            watch_one(lab.postmaster(held), set(history_files(node)))

    def watch_one(before: int | None, known: set[str]) -> None:
        checkpointer = None
        while not end.is_set() and checkpointer is None:
            pid = lab.postmaster(held)
            if pid not in (None, before):
                with contextlib.suppress(psutil.Error):
                    children = psutil.Process(pid).children()
                    checkpointer = next((one for one in children if "checkpointer" in "".join(one.cmdline())), None)
        if checkpointer is None:
            return
        if when == "before it":
            checkpointer.suspend()
        # what the try before has left says nothing of this one
        while not end.is_set() and reached(known):
            time.sleep(0.0005)
        while not end.is_set() and not reached(known):
            time.sleep(0.0005)
        checkpointer.suspend()
        # the rest of what is done before the checkpoint
        time.sleep(0.5)
        seen.append(lab.ssh(held, f"{lab.info['bin_dir']}/pg_controldata {node.data_dir}").stdout)
        server = psutil.Process(pid)
        command, owner, group = server.cmdline(), server.uids().real, server.gids().real
        processes = (server, *server.children())
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, 10)
        if started_again:
            as_owner: dict[str, Any] = {"user": owner, "group": group} if os.getuid() != owner else {}
            more = as_owner | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.Popen(command, cwd=node.data_dir, start_new_session=True, **more)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def begin(scene: Scene) -> set[str]:
    """A checkpoint with much to replay before it, which counts as fresh, and a bad deployment; return the histories."""
    lab, leader = scene.lab, scene.leader
    lab.sql(leader, FILLER, database="postgres")
    rows = contents(lab, leader)
    wait_for("all have what is to be replayed", lambda: all(has(lab, name, rows) for name in lab.names))
    scene.fresh = look(lab)
    scene.checkpoint()
    scene.deploy_badly()
    return set(history_files(scene.lab.nodes[scene.held]))


def killed(seen: list[str], when: str) -> None:
    """It was killed in that moment, and pg_control was on the old timeline."""
    assert seen and f"Database cluster state:               {STATES[when]}" in seen[0], seen or "it was not killed"


def ended_at_the_mark(scene: Scene, known: set[str]) -> None:
    """Everybody has the old rows, on the timeline after the dead one."""
    picture = verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert picture.members[scene.held].timeline == scene.timeline + 2
    assert len(set(history_files(scene.lab.nodes[scene.held])) - known) == 2


@pytest.mark.parametrize("when", [pytest.param("before it", marks=pytest.mark.whole), "during it"])
def test_a_rollback_recovers_once_more(scene: Scene, when: str) -> None:
    known = begin(scene)
    with dies_at_its_checkpoint(scene.lab, scene.held, when) as seen:
        scene.rollback()
    killed(seen, when)
    ended_at_the_mark(scene, known)


def fail_for_good(scene: Scene, when: str) -> str:
    """Roll back while the recovered server dies at each try; return what the report says: the others serve."""
    deployed = contents(scene.lab, scene.leader)
    with dies_at_its_checkpoint(scene.lab, scene.held, when, times=3) as seen:
        state, report = scene.run("rollback", **scene.rollback_conf())
    killed(seen, when)
    assert (state, report["result"], len(seen)) == ("failed", "failed", 3), report
    assert "The old cluster was put back into service" in report["message"], report["message"]
    others = [name for name in scene.lab.names if name != scene.held]
    assert [contents(scene.lab, name) for name in others] == [deployed] * 2
    assert scene.journal()["phase"] == "recovering"
    return str(report["message"])


@pytest.mark.whole
def test_who_dies_each_time_can_be_given_up(scene: Scene) -> None:
    lab = scene.lab
    begin(scene)
    held, deployed = scene.held, contents(lab, scene.leader)
    said = fail_for_good(scene, "during it")
    node = lab.nodes[held]
    assert (
        f"remove its data directory, move {node.patroni_config}.bluegreen-aside back to {node.patroni_config}" in said
    )

    assert "it cannot be resumed" in scene.refused("resume")

    lab.ssh(held, f"rm -r {node.data_dir} && mv {node.patroni_config}.bluegreen-aside {node.patroni_config}")
    lab.start_patroni(held)
    lab.wait_healthy(90)
    scene.must("resume")
    verdict(lab, before=scene.fresh, rows=deployed)


@pytest.mark.whole
def test_who_leads_since_a_recovery_was_given_up_is_known_to_the_next_try(scene: Scene) -> None:
    lab = scene.lab
    begin(scene)
    old, third = scene.leader, scene.third
    fail_for_good(scene, "during it")
    lab.patronictl("switchover", lab.name, "--candidate", third, "--force", node=third).check_returncode()
    assert scene.wait_failover(old) == third

    report = scene.rollback()

    assert report["checkpoint"]["leader"] == third, report
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


@pytest.mark.whole
@pytest.mark.parametrize("when", STATES)
def test_the_runbook_recovers_once_more_when_it_is_run_again(scene: Scene, tmp_path: Path, when: str) -> None:
    known = begin(scene)
    path = scene.lab.nodes[scene.held].patroni_config
    text = path.with_name(path.name + ".bluegreen-runbook").read_text()
    with dies_at_its_checkpoint(scene.lab, scene.held, when) as seen:
        status, said = run(scene, text, tmp_path)
    killed(seen, when)
    assert status == 1, said
    assert f"{scene.held} came to the mark, and its server ended before it was promoted there" in said, said
    status, said = run(scene, text, tmp_path)
    assert status == 0, said
    ended_at_the_mark(scene, known)


@pytest.mark.whole
@pytest.mark.parametrize("when", STATES)
def test_who_was_started_past_the_mark_is_left_out_and_the_others_serve(scene: Scene, when: str) -> None:
    lab = scene.lab
    begin(scene)
    held, deployed = scene.held, contents(lab, scene.leader)
    with dies_at_its_checkpoint(lab, held, when, started_again=True) as seen:
        state, report = scene.run("rollback", **scene.rollback_conf())
    killed(seen, when)
    assert (state, report["result"]) == ("failed", "failed"), report
    # found while it runs, or after it was stopped
    past = ("is not on the timeline that began 'after transaction", "was 'in production', and not as the recovery to")
    assert any(one in report["message"] for one in past), report["message"]
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
