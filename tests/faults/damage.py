"""What can break: each function breaks one thing on the lab and returns how it is mended again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from lab.cluster import Lab
from lab.lifecycle import etcd_answers
from lab.standalone import Airflow
from tests.cluster.scene import Scene, changed, of_root, wait_for
from tests.cluster.verdict import delete_key, put_key
from tests.faults.breakpoints import Breakpoints

Mend = Callable[[], object]
RUNS_ON_SECONDS = 6
"""How long a command goes on after its connection was cut: longer than the first retry takes to come."""


@dataclass
class Place:
    """Where a case breaks something.

    :param member: the member that it hits.
    """

    scene: Scene
    points: Breakpoints
    member: str
    folder: Path
    standalone: Airflow | None = None

    @property
    def lab(self) -> Lab:
        """The lab."""
        return self.scene.lab

    def at(self, role: str, folder: Path) -> Place:
        """Another member of the same scene.

        :param role: as in `Scene.who`.
        :param folder: empty, for what lies there.
        """
        return replace(self, member=self.scene.who(role), folder=folder)


def nothing() -> None:
    """Nothing to mend: the damage is over, or it is the product's to mend."""


def no_more(place: Place) -> Mend:
    """What was prepared is the damage."""
    return nothing


def task_killed(place: Place) -> Mend:
    """SIGKILL to the process of the task that stands at the point."""
    pid = place.points.reached()
    assert pid
    os.kill(pid, signal.SIGKILL)
    return nothing


def airflow_killed(place: Place) -> Mend:
    """SIGKILL to scheduler, triggerer, their workers and the task, at once; then Airflow starts again."""
    pid = place.points.reached()
    assert pid
    assert place.standalone
    group, killed = place.standalone.group(), []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group or process.pid == pid:
                killed.append(process)
    _each(killed, psutil.Process.kill)
    psutil.wait_procs(killed, 10)
    place.standalone.start()
    return nothing


def _session_processes(place: Place) -> list[psutil.Process]:
    """The member's SSH server and its sessions, without what runs in them."""
    pid = place.lab.supervisor.program(f"sshd-{place.member}").pid
    assert pid
    head = psutil.Process(pid)
    found = [head]
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "sshd" in process.name():
                found.append(process)
    return found


def _each(processes: list[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    """Do it to those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            do(process)


def _suspended(processes: list[psutil.Process]) -> Mend:
    """Send SIGSTOP to all; mending sends SIGCONT."""
    _each(processes, psutil.Process.suspend)
    return lambda: _each(processes, psutil.Process.resume)


def ssh_refused(place: Place) -> Mend:
    """The member's SSH server is gone, with all sessions."""
    sessions = _session_processes(place)[1:]
    place.lab.supervisor.stop(f"sshd-{place.member}")
    _each(sessions, psutil.Process.kill)
    return lambda: place.lab.supervisor.start(f"sshd-{place.member}")


def ssh_cut(place: Place) -> Mend:
    """The member's SSH sessions are cut; new ones are possible."""
    _each(_session_processes(place)[1:], psutil.Process.kill)
    return nothing


def ssh_hangs(place: Place) -> Mend:
    """The member's SSH server takes connections and says nothing, nor do its sessions."""
    return _suspended(_session_processes(place))


def host_key_changed(place: Place) -> Mend:
    """The member's SSH server has another host key."""
    words = " ".join(_session_processes(place)[0].cmdline()).split()
    file = Path(words[words.index("-f") + 1])
    key = next(Path(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("HostKey"))
    kept, public = key.read_bytes(), key.with_name(key.name + ".pub").read_bytes()
    uid, gid = key.stat().st_uid, key.stat().st_gid

    def put(make: Callable[[], object]) -> None:
        ssh_refused(place)
        make()
        for path in (key, key.with_name(key.name + ".pub")):
            os.chown(path, uid, gid)
        place.lab.supervisor.start(f"sshd-{place.member}")

    def new() -> None:
        key.unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)

    def old() -> None:
        key.write_bytes(kept)
        key.with_name(key.name + ".pub").write_bytes(public)

    put(new)
    return lambda: put(old)


def patroni_killed(place: Place) -> Mend:
    """SIGKILL to the member's Patroni; its server goes on. A person starts it again afterwards."""
    place.lab.kill_patroni(place.member)
    return lambda: _start_unless_aside(place)


def postgres_killed(place: Place) -> Mend:
    """SIGKILL to the member's postmaster."""
    if place.lab.postmaster(place.member):
        place.lab.kill_postgres(place.member)
    return nothing


def member_dead(place: Place) -> Mend:
    """Patroni and PostgreSQL of the member get SIGKILL; a person starts it again afterwards."""
    place.lab.kill_patroni(place.member)
    postgres_killed(place)
    return lambda: _start_unless_aside(place)


def host_gone(place: Place) -> Mend:
    """Nothing of the member's host answers: no SSH, no Patroni, no PostgreSQL."""
    mend_ssh, mend_member = ssh_refused(place), member_dead(place)

    def mend() -> None:
        mend_ssh()
        mend_member()

    return mend


def clock(hours: int) -> Callable[[Place], Mend]:
    """Patroni and PostgreSQL of the member run with another clock."""

    def turn(place: Place) -> Mend:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
        assert library, "Debian's package faketime is not there: make install"
        lab, patroni = place.lab, Path(place.lab.info["patronictl"]).with_name("patroni")
        environment = f"LD_PRELOAD={library} FAKETIME={hours:+d}h FAKETIME_DONT_FAKE_MONOTONIC=1"
        lab.stop_patroni(place.member)
        uncover = _covered(place, patroni, "", f"env {environment} {patroni.with_name('python')}")
        try:
            lab.start_patroni(place.member)
            lab.wait_healthy(60)
            seen = lab.value(place.member, "select round(extract(epoch from clock_timestamp()) / 3600)")
            assert abs(float(seen) - time.time() / 3600 - hours) <= 1, f"the clock was not turned: {seen}"
        finally:
            uncover()
        return nothing

    turn.__doc__ = f"The member's clock is {hours:+d} h off."
    return turn


def mark_not_in_wal(place: Place) -> Mend:
    """The journals name a transaction that is not in the WAL."""
    place.scene.edit_journals(lambda journal: {"xid": journal["xid"] + 1000})
    return nothing


def postgres_stopped(place: Place) -> Mend:
    """SIGSTOP to the member's server: it holds its port and answers nothing."""
    pid = place.lab.postmaster(place.member)
    assert pid
    return _suspended([psutil.Process(pid), *psutil.Process(pid).children()])


def _start_unless_aside(place: Place) -> None:
    if place.lab.nodes[place.member].patroni_config.exists():
        place.lab.start_patroni(place.member)


def etcd_stopped(place: Place) -> Mend:
    """The DCS does not answer."""
    place.lab.supervisor.stop("etcd")

    def mend() -> None:
        place.lab.supervisor.start("etcd")
        wait_for("etcd answers", lambda: etcd_answers(place.lab.info["dcs"]), 30)

    return mend


def program(name: str, how: str, *, only: str = "") -> Callable[[Place], Mend]:
    """A program of the server, or of the lab, that `fails` or `hangs`.

    All members have the same file, so a program that Patroni needs may only fail where bluegreen calls it.

    :param name: of the program, or `patronictl`, or `ctl`, the lab's own command.
    :param only: a word of the command line without which the program does what it should.
    """
    broken = {"fails": "echo broken >&2; exit 1", "hangs": "sleep 600"}[how]

    def cover(place: Place) -> Mend:
        path = _path(place, name)
        uncover = _covered(place, path, _with(only, broken))

        def mend() -> None:
            # one that hangs keeps its file busy, so its processes end first
            for process in psutil.process_iter(["cmdline"]):
                if str(path) in " ".join(process.info["cmdline"] or []):
                    _each([process], psutil.Process.kill)
            uncover()

        return mend

    cover.__name__ = f"{name}_{how}"
    return cover


def ssh_cut_in(name: str, *, only: str = "") -> Callable[[Place], Mend]:
    """The member's SSH sessions are cut while a program runs there, which goes on all the same.

    :param name: as in `program`.
    :param only: as in `program`.
    """

    def cut(place: Place) -> Mend:
        member, path = place.lab.nodes[place.member], _path(place, name)
        waits = _with(only, f"sleep {RUNS_ON_SECONDS}")
        uncover = _covered(place, path, _as_itself(place, path, waits))
        over = threading.Event()

        def runs() -> bool:
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or []
                here = member.name in words or any(str(member.data_dir) in word for word in words)
                if str(path) in words and only in ("", *words) and here:
                    return True
            return False

        def watch() -> None:
            while not over.wait(0.1):
                if runs():
                    ssh_cut(place)
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()

        def mend() -> None:
            missed = thread.is_alive()
            over.set()
            thread.join(10)
            uncover()
            assert not missed, f"{name} did not run on {member.name}: nothing was cut"

        return mend

    cut.__name__ = f"ssh_cut_in_{name}"
    return cut


def slow_server(place: Place, *, seconds: int = 8, mode: str = "") -> Mend:
    """The member's server takes some seconds until it starts, as one that has much to recover.

    :param mode: how it is started, where only that is slow: `--single` is how Patroni recovers one from a crash.
    """
    path = _path(place, "postgres")
    data_dir = place.lab.nodes[place.member].data_dir
    slow = f'case "$*" in *"{mode}"*"{data_dir}"*) cd {data_dir}; sleep {seconds};; esac'
    return _covered(place, path, _as_itself(place, path, slow))


def slow_clone(place: Place, calls: Path, *, seconds: int = 90) -> Mend:
    """A clone of the member takes long: a task that died is tried again meanwhile.

    :param calls: gets a line for each that is begun.
    """
    path = _path(place, "pg_basebackup")
    data_dir = place.lab.nodes[place.member].data_dir
    calls.touch()
    calls.chmod(0o666)
    slow = f'case "$*" in *"{data_dir}"*) echo begun >> {calls}; sleep {seconds};; esac'
    return _covered(place, path, _as_itself(place, path, slow))


def _path(place: Place, name: str) -> Path:
    """Where a program of the server is, or of the lab."""
    info = place.lab.info
    return Path(info[name]) if name in info else Path(info["bin_dir"]) / name


def _with(word: str, line: str) -> str:
    """A line of a shell script that is run only with this word on the command line; without a word, always."""
    return f'case " $* " in *" {word} "*) {line};; esac' if word else line


def _as_itself(place: Place, path: Path, first: str) -> str:
    """Lines that go on as the program under its own name, by which PostgreSQL's programs find their files."""
    return f'{first}\nexec bash -c \'exec -a "$0" "$@"\' {path} {place.folder / "real"} "$@"'


def _covered(place: Place, path: Path, first: str, interpreter: str = "") -> Mend:
    """Have another file in a program's place, which does something first and then what the program does.

    :param first: lines of a shell script.
    :param interpreter: what the program is run with.
    """
    _require_one_mount_namespace(place)
    fake, real = place.folder / "fake", place.folder / "real"
    real.write_bytes(path.read_bytes())
    fake.write_text(f'#!/bin/sh\n{first}\nexec {interpreter} {real} "$@"\n')
    for entry in (fake, real, place.folder, *list(place.folder.parents)[:3]):
        entry.chmod(entry.stat().st_mode | 0o555)
    subprocess.run(["mount", "--bind", fake, path], check=True)
    return lambda: subprocess.run(["umount", "-l", path], check=True)


def _require_one_mount_namespace(place: Place) -> None:
    """A lab that was started in another namespace does not see what is mounted here: nothing would break."""
    pid = place.lab.supervisor.program(f"sshd-{place.member}").pid
    here, there = (Path(f"/proc/{process}/ns/mnt").readlink() for process in ("self", pid))
    assert here == there, "the lab runs in another mount namespace than the tests: stop it, and start it in theirs"


def wal_missing(place: Place) -> Mend:
    """The held member's WAL files, from the mark's on, are gone."""
    member = place.lab.nodes[place.member]
    for path in (member.data_dir / "pg_wal").iterdir():
        if len(path.name) == 24:
            path.unlink()
    return nothing


def right_taken_away(place: Place) -> Mend:
    """A person takes away, on the leader, the right without which there is no mark."""
    right = "execute on function pg_create_restore_point(text)"
    place.lab.sql(place.member, f"revoke {right} from bluegreen")
    return lambda: place.lab.sql(place.scene.leader, f"grant {right} to bluegreen")


def slot_lost(place: Place) -> Mend:
    """The leader has lost the slot of the held standby, which does not receive, and the WAL that it needs."""
    place.scene.keep_little_wal()
    place.scene.stop_receiving()
    place.scene.outrun_slot()
    return nothing


def auto_conf_strange(place: Place) -> Mend:
    """The held member's postgresql.auto.conf names another recovery target, and cannot be parsed in one line."""
    path = place.lab.nodes[place.member].data_dir / "postgresql.auto.conf"
    text = path.read_text()
    path.write_text(text + "recovery_target_time = '2001-01-01'\nrecovery_target_name = 'nowhere'\n")
    return lambda: path.write_text(text)


def hba_of_root(place: Place) -> Mend:
    """A person edits the held member's pg_hba.conf as root, and leaves a file that is root's."""
    stack = contextlib.ExitStack()
    stack.enter_context(of_root(place.lab.nodes[place.member].data_dir / "pg_hba.conf"))
    return stack.close


def person_starts_patroni(place: Place) -> Mend:
    """A person starts Patroni on the member by hand, in the middle."""
    _try_start(place)
    time.sleep(3)
    return nothing


def _try_start(place: Place) -> None:
    subprocess.run([place.lab.info["ctl"], "start", place.member], capture_output=True, timeout=30, check=False)


def person_restores_yaml(place: Place) -> Mend:
    """A person copies the YAML that was set aside back into its place and starts Patroni with it."""
    path = place.lab.nodes[place.member].patroni_config
    aside = path.with_name(path.name + ".bluegreen-aside")
    if aside.exists():
        path.write_bytes(aside.read_bytes())
        os.chown(path, aside.stat().st_uid, aside.stat().st_gid)
    _try_start(place)
    time.sleep(3)

    def mend() -> None:
        if aside.exists():
            place.lab.stop_patroni(place.member)
            path.unlink()

    return mend


def stranger_joins(place: Place) -> Mend:
    """A member that the checkpoint does not know joins the cluster: its key stands in the DCS."""
    stranger = {
        "role": "replica",
        "state": "running",
        "conn_url": "postgres://127.0.0.9:5432/postgres",
        "api_url": "http://127.0.0.9:8008/patroni",
        # else each member keeps a slot for it, which outlives it by half an hour
        "tags": {"nostream": True},
    }
    put_key(place.lab, "members/n9", json.dumps(stranger))
    wait_for("Patroni shows it", lambda: "n9" in {one["name"] for one in place.lab.cluster()["members"]}, 30)
    return lambda: delete_key(place.lab, "members/n9")


def second_rollback(place: Place) -> Mend:
    """A second rollback is started while the first one works."""
    run_id = place.scene.trigger("rollback", **place.scene.rollback_conf(reason="the second"))
    state = place.scene.airflow.wait("bluegreen_rollback", run_id, seconds=120)
    report = place.scene.airflow.xcom("bluegreen_rollback", run_id, "report") or {}
    assert (state, report.get("result")) == ("failed", "refused"), f"the second rollback: {state}, {report}"
    assert "locked by rollback" in report["message"], report["message"]
    return nothing


def short_rewind(place: Place) -> Mend:
    """The registry gives a rewind 20 s."""
    assert place.standalone
    registry = Path(place.standalone.environment["BLUEGREEN_CLUSTERS"])
    stack = contextlib.ExitStack()
    stack.enter_context(changed(registry, place.lab.name, rewind_timeout="20s"))
    return stack.close


def small_disk(place: Place) -> Mend:
    """The member's data directory lies on a file system of its own, with 100 MB to spare."""
    _require_one_mount_namespace(place)
    data = place.lab.nodes[place.member].data_dir
    used = int(subprocess.run(["du", "-sm", data], capture_output=True, text=True, check=True).stdout.split()[0])
    status = data.stat()
    place.lab.stop_patroni(place.member)
    kept = data.with_name("kept")
    data.rename(kept)
    data.mkdir(mode=0o700)
    options = f"size={used + 100}m,mode=0700,uid={status.st_uid},gid={status.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", data], check=True)
    subprocess.run(["cp", "-a", f"{kept}/.", data], check=True)
    shutil.rmtree(kept)
    place.lab.start_patroni(place.member)
    # a held member that was started again has no receiver while its replay waits (hazard H7)
    waits = {f"{place.member} does not stream"}
    wait_for("the member is back", lambda: set(place.lab.trouble()) <= waits)

    def mend() -> None:
        place.lab.kill_patroni(place.member)
        postgres_killed(place)
        subprocess.run(["umount", "-l", data], check=True)

    return mend


def disk_full(place: Place) -> Mend:
    """The member's small file system is full, but for a few pages: a file of ballast takes the rest."""
    data = place.lab.nodes[place.member].data_dir
    assert data.is_mount(), "the data directory is not on a file system of its own"
    ballast = data / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(16384))
            file.flush()
    return lambda: ballast.unlink(missing_ok=True)
