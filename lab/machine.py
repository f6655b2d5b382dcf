"""What else is on this machine: who uses an address, and what a dead lab left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from lab.config import (
    ETCD_PEER_PORT,
    ETCD_PORT,
    POSTGRES_PORT,
    REST_PORT,
    SSH_PORT,
    LabError,
    Settings,
    find_program,
)


def check_prerequisites(settings: Settings) -> None:
    """See that everything the lab runs is installed and may be run by its user.

    Raises:
        LabError: with what is missing, and what brings it.
    """
    for program in ("etcd", "sshd", "ssh-keygen"):
        find_program(program)
    if not (settings.bin_dir / "postgres").exists():
        raise LabError(f"There is no {settings.bin_dir}/postgres; `make install`, or PG_BIN=/path/to/bin make lab")
    # folders that do not exist yet will belong to the lab's user
    above = next(path for path in settings.directory.parents if path.exists())
    try:
        settings.call(["test", "-x", above])
    except LabError:
        raise LabError(
            f"The lab's user {settings.user.pw_name} may not enter {above}; set LAB_DIR to a folder that it may enter"
        ) from None
    if settings.server_number < 90500:
        raise LabError(f"PostgreSQL {settings.server_version} in {settings.bin_dir}: the lab needs 9.5 or newer")


def check_addresses(settings: Settings) -> None:
    """See that nothing listens where the lab is going to.

    Raises:
        LabError: naming each address in use, and by whom.
    """
    wanted = [(settings.etcd_host, ETCD_PORT), (settings.etcd_host, ETCD_PEER_PORT)]
    for node in settings.nodes:
        wanted += [(node.host, port) for port in (SSH_PORT, REST_PORT, POSTGRES_PORT)]
    taken = [(host, port) for host, port in wanted if not is_free(host, port)]
    if not taken:
        return
    owners = {owner(host, port) for host, port in taken}
    other = "127.0.8" if settings.net == "127.0.7" else "127.0.7"
    places = ", ".join(f"{host}:{port}" for host, port in taken)
    raise LabError(
        f"{places} in use by {' and '.join(sorted(owners))}. "
        f"Stop that first, or take other addresses, for example: LAB_NET={other} make lab"
    )


def listens(pid: int, host: str, port: int) -> bool:
    """Whether it is this very process that listens on the address."""
    with contextlib.suppress(psutil.Error):
        for found in psutil.Process(pid).net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and tuple(found.laddr) == (host, port):
                return True
    return False


def is_free(host: str, port: int) -> bool:
    """Whether nothing listens on this address and port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def owner(host: str, port: int) -> str:
    """Who listens there, in words."""
    with contextlib.suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            here = found.laddr and found.laddr.port == port and found.laddr.ip in (host, "0.0.0.0", "::")
            if here and found.status == psutil.CONN_LISTEN and found.pid:
                process = psutil.Process(found.pid)
                command = " ".join(process.cmdline()) or process.name()
                return _other_lab(command) or f"{command[:100]} (pid {found.pid}, user {process.username()})"
    return "a process of another user"


def _other_lab(command: str) -> str | None:
    """Another checkout's lab, when a path in this command line says so."""
    for path in re.findall(r"/[^\s=]+", command):
        for folder in Path(path).parents:
            kept = folder / "settings.json"
            with contextlib.suppress(OSError):
                match = re.search(r'"checkout": "([^"]+)"', kept.read_text())
                if match:
                    return f"the lab of {match[1]} (make -C {shlex.quote(match[1])} lab-down)"
    return None


def leftovers(settings: Settings) -> list[psutil.Process]:
    """Processes of this lab that live without its process manager."""
    inside = f"{settings.directory}/"
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        command = process.info["cmdline"] or []
        uids = process.info["uids"]
        is_ours = uids and uids.real == settings.user.pw_uid and any(inside in part for part in command)
        if is_ours and _is_service(command):
            found.append(process)
    return found


def _is_service(command: list[str]) -> bool:
    """Whether this is a service of the lab, and not somebody's editor or shell in its folder."""
    names = {Path(part.split(" ")[0].rstrip(":")).name for part in command[:2]}
    return bool(names & {"supervisord", "patroni", "etcd", "sshd", "postgres"})


def end_leftovers(settings: Settings) -> int:
    """End what a dead lab left behind, cleanly where possible, Patroni before PostgreSQL; return how many."""
    found = leftovers(settings)
    postmasters = [process for process in found if _is_postgres(process)]
    others = [process for process in found if process not in postmasters]
    _end(others, signal.SIGTERM, 20)
    _end(postmasters, signal.SIGINT, 20)  # a fast shutdown
    return len(found)


def _is_postgres(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("postgres")
    return False


def _end(processes: list[psutil.Process], how: signal.Signals, timeout: float) -> None:
    """Send a signal to all, then wait; SIGKILL for those that do not mind it."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    alive = _wait_gone(processes, timeout)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_gone(alive, 5)


def _wait_gone(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait for the end of these processes; return those that live on.

    A zombie has ended: whoever inherited it, often a container's first process, may collect it late.
    """
    deadline = time.monotonic() + timeout
    while alive := [process for process in processes if is_alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return alive


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_postmasters(data_dirs: Iterable[Path], how: signal.Signals = signal.SIGQUIT, timeout: float = 10) -> None:
    """End the servers that run on these data directories, side by side, with all their children."""
    family: list[psutil.Process] = []
    heads: list[psutil.Process] = []
    for pid in filter(None, map(postmaster_pid, data_dirs)):
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(pid)
            heads.append(head)
            family += head.children(recursive=True)
    _end(heads, how, timeout)
    _end([process for process in family if is_alive(process)], signal.SIGQUIT, 2)


def postmaster_pid(data_dir: Path) -> int | None:
    """The pid of the living server on this data directory, or None."""
    try:
        pid = int((data_dir / "postmaster.pid").read_text().split("\n")[0])
        cwd = Path(f"/proc/{pid}/cwd").readlink()
    except (OSError, ValueError):
        return None
    return pid if cwd == data_dir.resolve() else None


def generate_key(settings: Settings, path: Path, comment: str) -> str:
    """An ed25519 key pair, made once; return its public part."""
    if not path.exists():
        settings.call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
    return path.with_name(path.name + ".pub").read_text().strip()


def make_venv(settings: Settings, requirements: Path) -> None:
    """The Python environment of Patroni and the process manager, from the hashed lock, outside the checkout."""
    stamp = settings.venv / "installed"
    wanted = f"{requirements.read_text()}\n{settings.patroni_version}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    python = Path("/usr/bin/python3")
    pip = settings.venv / "bin" / "pip"
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": ""}
    commands = [
        [python, "-m", "venv", "--clear", settings.venv],
        [pip, "install", "-q", "--require-hashes", "-r", requirements],
    ]
    if settings.patroni_version:
        # Patroni before 4 asks for any ydiff from 1.2 on, and its patronictl does not start with a newer one.
        older = ["ydiff==1.2"] if int(settings.patroni_version.split(".")[0]) < 4 else []
        commands.append([pip, "install", "-q", f"patroni[etcd3]=={settings.patroni_version}", *older])
    for command in commands:
        done = subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True, umask=0o022
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LabError(f"{' '.join(map(str, command))} failed: {said[-1500:]}")
    stamp.write_text(wanted)
