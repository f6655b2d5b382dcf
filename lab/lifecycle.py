"""Bring the lab up and down, and set it back to an earlier state."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import sql

from lab.cluster import Lab
from lab.config import CHECKOUT, ETCD_PORT, SSH_PORT, LabError, Node, Settings, load_secrets
from lab.files import CLIENT_TLS, write_run, write_services
from lab.machine import check_addresses, check_prerequisites, end_leftovers, end_postmasters, listens, make_venv
from lab.supervisor import Supervisor

FRESH = "fresh"
SQL = CHECKOUT / "include" / "sql"
Say = Callable[[str], None]


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Let one call at a time change this lab; others wait."""
    settings.folder(settings.directory)
    with (settings.directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def up(settings: Settings, say: Say) -> None:
    """Start the lab, or repair what of it is stopped; a healthy lab is left alone.

    Raises:
        LabError: with what a person has to change; nothing was changed where an address is in use.
    """
    supervisor = Supervisor(settings.supervisor_socket)
    if settings.directory.exists() and supervisor.is_up():
        with alone(settings):
            _repair(settings, supervisor, say)
        return
    check_prerequisites(settings)
    if not (settings.directory / "settings.json").exists():
        check_addresses(settings)
    _make_parents(settings)
    with alone(settings):
        _start(settings, supervisor, say)


def _make_parents(settings: Settings) -> None:
    """Folders above the lab's own, which its user must be able to enter."""
    missing = [path for path in settings.directory.parents if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o755)


def _start(settings: Settings, supervisor: Supervisor, say: Say) -> None:
    if supervisor.is_up():  # somebody else was faster
        _repair(settings, supervisor, say)
        return
    if ended := end_leftovers(settings):
        say(f"Ended {ended} processes that a dead lab had left behind")
    check_addresses(settings)
    settings.save()
    if not (settings.venv / "installed").exists():
        say("Installing Patroni and the process manager")
    make_venv(settings, CHECKOUT / "lab" / "requirements.lock")
    secrets = load_secrets(settings)
    write_services(settings, secrets)
    write_run(settings, secrets)
    _start_manager(settings, supervisor)
    lab = Lab.load(settings.run)
    if not any(node.data_dir.exists() for node in settings.nodes):
        say(f"Creating a cluster of {settings.size} on PostgreSQL {settings.server_version}")
    start_members(settings, supervisor, lab)
    _finish(settings, lab, say)


def _finish(settings: Settings, lab: Lab, say: Say) -> None:
    """What follows once Patroni runs everywhere: roles, grants, and on the first day a copy."""
    lab.wait_healthy(90)
    _apply_grants(settings, lab)
    if not (settings.directory / "snapshots" / FRESH).exists():
        say("Keeping a copy of this state, for `make lab-reset`")
        snapshot(settings, FRESH)


def _repair(settings: Settings, supervisor: Supervisor, say: Say) -> None:
    secrets = load_secrets(settings)
    write_run(settings, secrets)
    lab = Lab.load(settings.run)
    stopped = [one.name for one in supervisor.programs().values() if not one.is_up]
    if not stopped and not lab.trouble():
        say("The lab is already running, and healthy")
    if stopped:
        say(f"Starting {', '.join(stopped)}")
        supervisor.start(*[name for name in stopped if not name.startswith("patroni-")])
        _prove_own_listeners(settings, supervisor)
        start_members(settings, supervisor, lab)
    _finish(settings, lab, say)


def start_members(settings: Settings, supervisor: Supervisor, lab: Lab) -> None:
    """Start Patroni everywhere: first where the newest data is, so that nobody has to rewind."""
    _wait_etcd(settings)
    up = {name for name, program in supervisor.programs().items() if program.is_up}
    order = newest_first(settings)
    if not any(node.program in up for node in order):
        supervisor.start(order[0].program)
        # a leader that was killed still owns the key until its ttl ends
        lab.wait_leader(60)
    supervisor.start(*(node.program for node in order))


def newest_first(settings: Settings) -> list[Node]:
    """The members, the one that was the leader last first."""
    return sorted(settings.nodes, key=lambda node: _newness(settings, node), reverse=True)


def _newness(settings: Settings, node: Node) -> tuple[int, bool, int]:
    """Timeline, whether it was a primary, position: as pg_controldata says of a server that is down."""
    if not (node.data_dir / "global" / "pg_control").exists():
        return (0, False, -int(node.name[1:]))
    text = settings.call([settings.bin_dir / "pg_controldata", node.data_dir]).stdout
    timeline = re.search(r"TimeLineID: +(\d+)", text)
    state = re.search(r"cluster state: +(.*)", text)
    location = re.search(r"checkpoint location: +([0-9A-F]+)/([0-9A-F]+)", text)
    if not (timeline and state and location):
        raise LabError(f"pg_controldata on {node.data_dir} said: {text[:500]}")
    was_primary = state[1].strip() in ("shut down", "in production", "shutting down", "in crash recovery")
    return (int(timeline[1]), was_primary, (int(location[1], 16) << 32) + int(location[2], 16))


def _start_manager(settings: Settings, supervisor: Supervisor) -> None:
    """Start the process manager, with etcd and the SSH servers."""
    for socket in settings.socket_dir.glob("supervisor.sock*"):
        socket.unlink()
    command = [settings.venv / "bin" / "supervisord", "-c", settings.supervisord_conf]
    settings.call(command, cwd=settings.directory)
    _wait_supervisor(supervisor)
    try:
        _prove_own_listeners(settings, supervisor)
    except LabError:
        supervisor.shutdown()
        raise


def _prove_own_listeners(settings: Settings, supervisor: Supervisor, timeout: float = 10) -> None:
    """See that etcd and the SSH servers are ours, before a Patroni of ours may speak to them.

    Two labs that start at once on the same addresses both find them free; without this proof the members of
    one would join the other's etcd.
    """
    wanted = {"etcd": (settings.etcd_host, ETCD_PORT)}
    wanted |= {node.sshd: (node.host, SSH_PORT) for node in settings.nodes}
    deadline = time.monotonic() + timeout
    while missing := [name for name, place in wanted.items() if not listens(supervisor.program(name).pid, *place)]:
        if time.monotonic() > deadline:
            places = ", ".join(f"{host}:{port}" for host, port in (wanted[name] for name in missing))
            raise LabError(
                f"{', '.join(missing)} could not listen on {places}: another lab took these addresses at the "
                f"same moment, or see {settings.directory}/log. Choose other addresses with LAB_NET"
            )
        time.sleep(0.05)


def _wait_supervisor(supervisor: Supervisor, timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not supervisor.is_up():
        if time.monotonic() > deadline:
            raise LabError(f"The process manager does not answer on {supervisor.path}")
        time.sleep(0.05)


def etcd_answers(dcs: str) -> bool:
    """Whether the DCS at this host and port is healthy."""
    try:
        return httpx.get(f"http://{dcs}/health", timeout=2, trust_env=False).json().get("health") == "true"
    except (httpx.HTTPError, ValueError):
        return False


def _wait_etcd(settings: Settings, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not etcd_answers(settings.dcs):
        if time.monotonic() > deadline:
            raise LabError(f"etcd does not answer on {settings.dcs}; its log is {settings.directory}/log/etcd.log")
        time.sleep(0.05)


def create_roles(connection: psycopg.Connection[Any], passwords: dict[str, str]) -> None:
    """The database `app`, its owner `release`, and `bluegreen`, the role that this project logs in as; made once."""
    for role in ("release", "bluegreen"):
        if connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone():
            continue
        create = sql.SQL("create role {} login password {}")
        # as the server keeps it: a statement that fails is logged as it was sent
        verifier = connection.pgconn.encrypt_password(passwords[role].encode(), role.encode()).decode()
        connection.execute(create.format(sql.Identifier(role), sql.Literal(verifier)))
    connection.execute("grant release to bluegreen")
    if not connection.execute("select 1 from pg_database where datname = 'app'").fetchone():
        connection.execute("create database app owner release")


def _apply_grants(settings: Settings, lab: Lab) -> None:
    """What bluegreen needs on the servers; applied again at every start, so that a change arrives."""
    leader = lab.wait_leader(30)
    with lab.connect(leader, "postgres") as session:
        create_roles(session, lab.info["users"])
    member = lab.nodes[leader]
    text = _grants(settings).read_text()
    command = [settings.bin_dir / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "role=bluegreen"]
    connection = {
        "PGHOST": member.host,
        "PGPORT": str(member.port),
        "PGUSER": "postgres",
        "PGPASSWORD": lab.info["password"],
        "PGDATABASE": "app",
        "PGOPTIONS": "-c client_min_messages=warning",
    }
    if settings.tls:
        connection |= {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(settings.tls_dir / "postgres_ca.pem")}
    settings.call(command, input=text, env={**settings.environment, **connection})


def _grants(settings: Settings) -> Path:
    """The file for this version: of the before_N that apply the smallest N, else the current one."""
    older = {int(path.parent.name.removeprefix("before_")): path for path in SQL.glob("before_*/grants.sql")}
    applicable = [before for before in older if settings.server_number < before * 10000]
    return older[min(applicable)] if applicable else SQL / "grants.sql"


def down(settings: Settings, say: Say) -> None:
    """Stop the lab, the leader last, so that nobody takes over in between."""
    if not settings.directory.exists():
        say("There is no lab")
        return
    with alone(settings):
        supervisor = Supervisor(settings.supervisor_socket)
        was_up = supervisor.is_up()
        if was_up:
            stop_members(settings, supervisor)
            supervisor.shutdown()
        # in maintenance mode Patroni leaves PostgreSQL running
        end_postmasters((node.data_dir for node in settings.nodes), signal.SIGINT, 20)
        end_leftovers(settings)
    say(
        "The lab is stopped; `make lab` starts it again, `make lab-clean` removes it" if was_up else "No lab is running"
    )


def stop_members(settings: Settings, supervisor: Supervisor) -> None:
    """Stop Patroni everywhere, the leader last."""
    leader = Lab.load(settings.run).leader() if (settings.run / "lab.json").exists() else None
    supervisor.stop(*(node.program for node in settings.nodes if node.name != leader))
    supervisor.stop(*(node.program for node in settings.nodes))


def clean(settings: Settings, say: Say) -> None:
    """Stop the lab and remove all that it has written."""
    if not (settings.directory / "settings.json").exists():
        say("There is no lab")
        return
    down(settings, lambda text: None)
    if settings.socket_dir.parent != settings.directory:
        shutil.rmtree(settings.socket_dir, ignore_errors=True)
    shutil.rmtree(settings.directory)
    names = ("lab.json", "clusters.yaml", "airflow.env", "client_ed25519", "known_hosts", "ssh_config", *CLIENT_TLS)
    for name in names:
        (settings.run / name).unlink(missing_ok=True)
    say(f"Removed {settings.directory}")


def snapshot(settings: Settings, name: str) -> None:
    """Stop all members and etcd, copy their folders, start them again."""
    target = _snapshot_dir(settings, name)
    supervisor = Supervisor(settings.supervisor_socket)
    lab = Lab.load(settings.run)
    stop_members(settings, supervisor)
    supervisor.stop("etcd")
    shutil.rmtree(target, ignore_errors=True)
    draft = settings.folder(target.with_name(name + ".new"))
    _copy(settings, [settings.directory / part for part in _parts(settings)], draft)
    draft.rename(target)
    supervisor.start("etcd")
    _prove_own_listeners(settings, supervisor)
    start_members(settings, supervisor, lab)
    lab.wait_healthy(60)


def reset(settings: Settings, name: str) -> float:
    """Throw away the lab's present state for the kept one; return the seconds until it is healthy."""
    begin = time.monotonic()
    source = _snapshot_dir(settings, name)
    if not source.exists():
        raise LabError(f"There is no snapshot {name} in {source.parent}")
    supervisor = Supervisor(settings.supervisor_socket)
    if not supervisor.is_up():
        end_leftovers(settings)
        check_addresses(settings)
        _start_manager(settings, supervisor)
    # nothing of the present state is kept, so nothing has to be stopped gently
    supervisor.kill(*(node.program for node in settings.nodes))
    end_postmasters(node.data_dir for node in settings.nodes)
    supervisor.stop("etcd")
    parts = [settings.directory / part for part in _parts(settings)]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    _copy(settings, [source / part.name for part in parts], settings.directory)
    supervisor.start("etcd", *(node.sshd for node in settings.nodes))
    _prove_own_listeners(settings, supervisor)
    lab = Lab.load(settings.run)
    start_members(settings, supervisor, lab)
    lab.wait_healthy(60)
    _apply_grants(settings, lab)
    return time.monotonic() - begin


def _parts(settings: Settings) -> list[str]:
    return [node.name for node in settings.nodes] + ["etcd", "archive"]


def _snapshot_dir(settings: Settings, name: str) -> Path:
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise LabError(f"A snapshot's name has lower-case letters, digits, - and _, unlike {name!r}")
    return settings.folder(settings.directory / "snapshots") / name


def _copy(settings: Settings, parts: list[Path], target: Path) -> None:
    command = ["cp", "-a", "--reflink=auto", *map(str, parts), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"cp -a to {target} failed: {done.stderr.strip()[-500:]}")
