"""A node over SSH: run a script, with one of three outcomes: done, failed, or unknown.

Source: Airflow's SSH provider (``SSHHook``: connection, host key and key handling) and paramiko's
``Channel``. The provider's own way to run a command has an idle timeout only and no standard input,
so the channel is read here.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import paramiko
from airflow.providers.ssh.hooks.ssh import SSHHook

from bluegreen import shell
from bluegreen.clusters import Cluster
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError, UnreachableError
from bluegreen.recovery.node_config import NodeConfig, parse_node_config

CONNECT_TIMEOUT_SECONDS = 5
SSH_PORT = 22
OUTPUT_LIMIT_BYTES = 8 * 1024 * 1024
QUIET_SECONDS = 1.0
CONTROL_TIMELINES = ("Latest checkpoint's TimeLineID", "Min recovery ending loc's timeline")
_SHOWN = 600
_CONNECTING = threading.Lock()

# options and one command, nothing that a shell would take apart
_PLAIN_SUDO = re.compile(r"sudo( [A-Za-z0-9@%_+=:,./-]+)+")
HostKey = paramiko.RSAKey | paramiko.ECDSAKey | paramiko.Ed25519Key


@dataclass(frozen=True)
class Result:
    """What a finished command left."""

    status: int
    output: str = field(repr=False)
    error: str

    def sections(self) -> dict[str, str]:
        """Return the sections that a script of ours printed, by name.

        :raises FailedForNowError: when a line is not one that the script prints.
        """
        found: dict[str, str] = {}
        # One line at a time: a list of all lines can be many times as large as the output.
        for line in _lines(self.output):
            name, tab, content = line.partition("\t")
            try:
                found[name] = base64.b64decode(content, validate=True).decode("utf-8", "surrogateescape")
            except (binascii.Error, ValueError):
                tab = ""
            if not tab:
                raise FailedForNowError(f"found {line[:80]!r} in a node's answer, expected a section of ours")
        return found


@dataclass(frozen=True)
class Service:
    """Whether Patroni's service runs on a node."""

    running: bool
    text: str


@dataclass(frozen=True)
class NodeState:
    """Patroni's configuration on a node, and what this project keeps beside it."""

    files: Mapping[str, str] = field(repr=False)
    aside: bool
    folder: bool
    config: NodeConfig
    journal: str | None = field(repr=False)
    lock: str | None
    original: str | None = field(repr=False)
    saved: bool
    writable: bool

    @property
    def is_alone(self) -> bool:
        """Whether the files of a recovery were written: if a server runs there, it does so outside Patroni."""
        return self.saved and self.aside


@dataclass(frozen=True)
class DataDirectory:
    """What ``shell.probe`` found in a data directory."""

    raw: Mapping[str, str] = field(repr=False)

    @property
    def exists(self) -> bool:
        """Whether the directory is there."""
        return "exists" in self.raw

    @property
    def bin_dir(self) -> str:
        """Folder of the server's programs."""
        return self.raw.get("bin_dir", "")

    @property
    def programs(self) -> list[str]:
        """Which of the needed programs are there."""
        return self.raw.get("programs", "").split()

    @property
    def server_processes(self) -> int:
        """Processes that work in this directory: a postmaster and its children."""
        return self._number("processes")

    @property
    def server_starts(self) -> bool:
        """Whether a server is up and lets nobody in yet, since it replays (``postmaster.pid``, from 10 on)."""
        lines = self.file("postmaster.pid").splitlines()
        return self.server_processes > 0 and len(lines) > 7 and lines[7].strip() == "starting"

    @property
    def epoch_seconds(self) -> int:
        """The node's clock."""
        return self._number("now")

    def _number(self, name: str) -> int:
        text = self.raw.get(name, "0").strip() or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise FailedForNowError(f"found {text[:80]!r} as {name} in a node's answer, expected a number")
        return int(text)

    @property
    def histories(self) -> dict[str, str]:
        """Timeline history files, name to text."""
        return {name.partition(":")[2]: text for name, text in self.raw.items() if name.startswith("history:")}

    @property
    def since_start(self) -> list[str]:
        """The history files that are newer than the server's last start."""
        return self.raw.get("since_start", "").split()

    @property
    def wal_names(self) -> list[str]:
        """File names in the WAL directory."""
        return self.raw.get("wal_names", "").split()

    @property
    def tablespaces(self) -> list[str]:
        """Where the tablespaces are."""
        return [line for line in self.raw.get("tablespaces", "").splitlines() if line]

    @property
    def wal_link(self) -> str:
        """Where the WAL directory's link leads, or empty."""
        return self.raw.get("wal_link", "").strip()

    def file(self, name: str) -> str:
        """Text of a small file in the directory, or empty."""
        return self.raw.get("file:" + name, "")

    def has(self, name: str) -> bool:
        """Whether a signal file, or another that the probe looks for, exists."""
        return name in self.raw

    def control(self, label: str) -> str:
        """Return a line of ``pg_controldata``.

        :raises FailedForNowError: when it is not there.
        """
        for line in self.raw.get("controldata", "").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == label:
                return value.strip()
        raise FailedForNowError(f"pg_controldata gave no line {label!r}; expected one from this data directory")

    @property
    def timeline(self) -> int:
        """The timeline that a stopped server has come to.

        :raises FailedForNowError: when ``pg_controldata`` does not say.
        """
        return max(self._timeline(label) for label in CONTROL_TIMELINES)

    @property
    def checkpoint_timeline(self) -> int:
        """The timeline of the last checkpoint: from there a server starts that finds no files of a recovery.

        :raises FailedForNowError: when ``pg_controldata`` does not say.
        """
        return self._timeline(CONTROL_TIMELINES[0])

    def _timeline(self, label: str) -> int:
        text = self.control(label)
        if not (text.isascii() and text.isdigit() and len(text) < 11):
            raise FailedForNowError(f"found {text[:80]!r} as a timeline in pg_controldata, expected a number")
        return int(text)

    def disk(self, which: str) -> tuple[str, int, int]:
        """Return device, size and free space in bytes of ``data`` or ``wal``.

        :raises FailedForNowError: when ``df`` gave none.
        """
        words = self.raw.get(f"{which}_disk", "").split()
        if len(words) < 6 or not (words[1].isdigit() and words[3].isdigit()):
            raise FailedForNowError(f"df gave no figures for the {which} directory")
        return words[0], int(words[1]) * 1024, int(words[3]) * 1024


class NodeHook:
    """One node of a cluster, by the cluster's SSH connection.

    :param cluster: its registry entry.
    :param member: the member's name.
    :param address: where SSH finds it.
    """

    def __init__(self, cluster: Cluster, member: str, address: str) -> None:
        self.cluster = cluster
        self.member = member
        self.address = address
        self.commands = cluster.node.for_member(member)
        self.log = logging.getLogger(__name__)
        self._client: paramiko.SSHClient | None = None
        self._ssh: SSHHook | None = None
        self._key_of: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the SSH connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def becomes(self, member: str) -> None:
        """Take the name of the member that was found to live here, on a node that was known by its address only.

        :raises RefusedError: when the host key is pinned as another member's.
        """
        if self._key_of not in (None, member):
            raise RefusedError(
                f"{self.where}: its SSH host key is that of {self._key_of} in ssh_host_keys, but Patroni's "
                f"configuration there is {member}'s; expected both to be one member's. Verify the key, and correct "
                "ssh_host_keys"
            )
        self.member = member
        self.commands = self.cluster.node.for_member(member)

    @property
    def where(self) -> str:
        """Member and address, for a sentence."""
        return f"{self.member} ({self.address})"

    @property
    def config_path(self) -> str:
        """Where Patroni's configuration belongs on this node."""
        return self.commands.patroni_config

    @property
    def ssh_port(self) -> int:
        """Where its SSH server listens.

        :raises RefusedError: as :meth:`prepare` does.
        """
        self.prepare()
        assert self._ssh is not None
        return int(self._ssh.port or SSH_PORT)

    def prepare(self) -> Self:
        """Read the connection from Airflow; done before threads start, since it asks Airflow's API.

        :raises RefusedError: when the connection does not exist or is not usable.
        """
        if self._ssh is None:
            try:
                self._ssh = SSHHook(
                    ssh_conn_id=self.cluster.ssh_conn_id,
                    remote_host=self.address,
                    conn_timeout=CONNECT_TIMEOUT_SECONDS,
                    auth_timeout=CONNECT_TIMEOUT_SECONDS,
                    banner_timeout=CONNECT_TIMEOUT_SECONDS,
                    conn_retry_attempts=1,
                )
                self._host_keys()
            except Exception as error:
                raise RefusedError(
                    f"the connection {self.cluster.ssh_conn_id!r} cannot be used ({_sentence(error)}); "
                    "expected an SSH connection in Airflow with user, key and port"
                ) from None
            if self._ssh.no_host_key_check or self._ssh.allow_host_key_change:
                raise RefusedError(
                    f"the connection {self.cluster.ssh_conn_id!r} switches host key checking off; expected it on. "
                    "Remove no_host_key_check and allow_host_key_change; pin the keys in ssh_host_keys or known_hosts"
                )
        return self

    def _host_keys(self) -> list[tuple[str | None, HostKey | None]]:
        """Whose key is accepted, and that key; None for what the worker's ``known_hosts`` says.

        A node that is known by its address only, while no Patroni tells the members' names, may be any of them.
        """
        pinned = self.cluster.ssh_host_keys
        if self.member in pinned:
            return [(self.member, _parse_key(self.member, pinned[self.member]))]
        anyone = sorted(pinned) if self.member == self.address else []
        return [*((member, _parse_key(member, pinned[member])) for member in anyone), (None, None)]

    def _open(self, ssh: SSHHook) -> paramiko.SSHClient:
        candidates = self._host_keys()
        for number, (member, key) in enumerate(candidates, start=1):
            ssh.host_key = key
            try:
                client = ssh.get_conn()
            except paramiko.BadHostKeyException:
                if number == len(candidates):
                    raise
                continue
            self._key_of = member
            return client
        raise AssertionError("there is always a candidate")

    def _connect(self) -> paramiko.SSHClient:
        if self._client is None or (transport := self._client.get_transport()) is None or not transport.is_active():
            self.prepare()
            assert self._ssh is not None
            try:
                self._client = self._open(self._ssh)
            except paramiko.BadHostKeyException:
                raise RefusedError(
                    f"{self.where}: the SSH host key is not the expected one; either the host was set up anew or "
                    "somebody is in between. Nothing was sent; verify the key and update ssh_host_keys or known_hosts"
                ) from None
            except paramiko.AuthenticationException:
                raise RefusedError(
                    f"{self.where}: SSH refused user {self._ssh.username!r}; expected the key or password of the "
                    f"connection {self.cluster.ssh_conn_id!r} to be accepted"
                ) from None
            except paramiko.SSHException as error:
                if "not found in known_hosts" in str(error):
                    raise RefusedError(
                        f"{self.where}: its SSH host key is not known; expected it in the registry's ssh_host_keys "
                        "or in the worker's known_hosts"
                    ) from None
                raise UnreachableError(
                    f"{self.where}: SSH took the connection on port {self._ssh.port}, and hung or ended before the "
                    f"login ({_sentence(error)})"
                ) from None
            except (OSError, EOFError, UnicodeError) as error:
                raise UnreachableError(
                    f"{self.where}: SSH does not answer on port {self._ssh.port} ({_sentence(error)})"
                ) from None
        return self._client

    def run(
        self, script: str, *, as_owner: bool = True, timeout_seconds: float = 30, may_leave_processes: bool = False
    ) -> Result:
        """Run a shell script and wait for its end and for the end of its output.

        :param script: text for ``/bin/sh -s``, sent on standard input.
        :param as_owner: as the owner of the data directory, else as the SSH user.
        :param timeout_seconds: for the whole command.
        :param may_leave_processes: it may start processes that keep its output open; then it is over when it
            has ended and printed nothing for a while.
        :raises UnreachableError: when nothing was sent.
        :raises OutcomeUnknownError: when the command began and its end was not seen.
        """
        client = self._connect()
        assert self._ssh is not None
        command = "/bin/sh -s"
        if as_owner and self._ssh.username != self.commands.os_user:
            command = f"sudo -n -u {self.commands.os_user} /bin/sh -s"
        deadline = time.monotonic() + timeout_seconds
        try:
            transport = client.get_transport()
            if transport is None:
                raise UnreachableError(f"{self.where}: the SSH connection was lost")
            channel = transport.open_session(timeout=CONNECT_TIMEOUT_SECONDS)
            channel.settimeout(1.0)
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise UnreachableError(f"{self.where}: SSH opened no session ({_sentence(error)})") from None
        try:
            return self._converse(channel, script, deadline, timeout_seconds, may_leave_processes)
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise OutcomeUnknownError(
                f"{self.where}: the connection was lost while a command ran ({_sentence(error)})"
            ) from None
        finally:
            channel.close()

    def _converse(
        self, channel: paramiko.Channel, script: str, deadline: float, limit: float, may_leave_processes: bool
    ) -> Result:
        outgoing = script.encode("utf-8", "surrogateescape")
        output, error = io.BytesIO(), io.BytesIO()
        moved_at = time.monotonic()
        while True:
            # sshd sends the exit status when the process ends and what is left in its pipes after it: only the
            # end of the output says that all of it is here. Asked before the reads, so that none is missed.
            complete = channel.eof_received and channel.exit_status_ready()
            if time.monotonic() > deadline:
                self.close()
                raise OutcomeUnknownError(f"{self.where}: a command did not end within {limit:g} s")
            moved = False
            if outgoing and channel.send_ready():
                outgoing = outgoing[channel.send(outgoing[:32768]) :]
                moved = True
                if not outgoing:
                    channel.shutdown_write()
            for ready, read, into in (
                (channel.recv_ready, channel.recv, output),
                (channel.recv_stderr_ready, channel.recv_stderr, error),
            ):
                if ready():
                    into.write(read(65536))
                    moved = True
            if output.tell() + error.tell() > OUTPUT_LIMIT_BYTES:
                self.close()
                raise OutcomeUnknownError(f"{self.where}: a command printed more than {OUTPUT_LIMIT_BYTES} bytes")
            if moved:
                moved_at = time.monotonic()
                continue
            if complete:
                break
            ended = channel.exit_status_ready()
            if may_leave_processes and ended and not channel.closed and time.monotonic() - moved_at > QUIET_SECONDS:
                complete = True
                break
            transport = channel.get_transport()
            if channel.closed or transport is None or not transport.is_active():
                if channel.eof_received and channel.exit_status_ready():
                    continue
                break
            if ended:
                time.sleep(0.002)
            else:
                channel.status_event.wait(0.01)
        status = channel.recv_exit_status() if complete else -1
        if status < 0:
            self.close()
            raise OutcomeUnknownError(f"{self.where}: the connection ended before the command's result arrived")
        return Result(
            status,
            output.getvalue().decode("utf-8", "surrogateescape"),
            error.getvalue().decode("utf-8", "replace"),
        )

    def done(self, script: str, doing: str, *, as_owner: bool = True, timeout_seconds: float = 30) -> Result:
        """Run a script that must succeed.

        :param doing: what it does, for the error's sentence.
        :raises FailedForNowError: when it ended with another status than 0.
        """
        result = self.run(script, as_owner=as_owner, timeout_seconds=timeout_seconds)
        if result.status:
            said = " ".join((result.error.strip() or result.output.strip())[-_SHOWN:].split()) or "nothing"
            if "sudo:" in result.error:
                raise RefusedError(f"{self.where}: {doing} needs sudo, which said: {said}. See docs/sudoers.example")
            raise FailedForNowError(f"{self.where}: {doing} ended with status {result.status}; it said: {said}")
        return result

    def state(self) -> NodeState:
        """Read Patroni's configuration and what this project keeps beside it.

        :raises RefusedError: when there is none, it is there twice, or it cannot be parsed.
        """
        found = self.done(shell.read_configuration(self.config_path), "reading Patroni's configuration").sections()
        texts = {kind: _named(found, kind + ":") for kind in ("config", "aside")}
        if texts["config"] and texts["aside"]:
            raise RefusedError(
                f"{self.where}: both {self.config_path} and {self.config_path}{shell.ASIDE} exist; expected one. "
                "Somebody put a new one in its place: keep the right one, remove the other"
            )
        files = texts["config"] or texts["aside"]
        folder = files.get("") == "folder\n"
        if folder:
            files = {name: text for name, text in files.items() if name}
        where = f"{self.where}: {self.config_path}"
        return NodeState(
            files=files,
            aside=bool(texts["aside"]),
            folder=folder,
            config=parse_node_config([files[name] for name in sorted(files)], where=where),
            journal=found.get("journal"),
            lock=found.get("lock"),
            original=found.get("original"),
            saved="saved" in found,
            writable="writable" in found,
        )

    def data_directory(self, config: NodeConfig) -> DataDirectory:
        """Look into a member's data directory."""
        result = self.done(shell.probe(config.data_dir, config.bin_dir), "looking into the data directory")
        return DataDirectory(result.sections())

    def service(self, verb: str, *, timeout_seconds: float = 90) -> Result:
        """Run the registry's ``start`` or ``stop`` command."""
        command = self.commands.start if verb == "start" else self.commands.stop
        return self.run(
            f"{command} </dev/null\n", as_owner=False, timeout_seconds=timeout_seconds, may_leave_processes=True
        )

    def require_service_rights(self) -> None:
        """Prove that sudo allows the registry's ``start`` and ``stop`` commands, without running them.

        Commands that are not one plain call of sudo are not known to be allowed before they run.

        :raises RefusedError: when it does not.
        """
        for verb, command in (("start", self.commands.start), ("stop", self.commands.stop)):
            if not _PLAIN_SUDO.fullmatch(command):
                continue
            result = self.run(f"{command.replace('sudo', 'sudo -n -l', 1)} </dev/null\n", as_owner=False)
            if result.status:
                said = " ".join((result.output + " " + result.error).split())[:_SHOWN] or "nothing"
                raise RefusedError(
                    f"{self.where}: sudo does not allow the registry's {verb} command {command!r} to "
                    f"{self._ssh.username if self._ssh else 'the SSH user'} (it said: {said}); expected it to. See "
                    "docs/sudoers.example"
                )

    def require_replaceable(self, files: Mapping[str, str]) -> None:
        """Prove that the server's files can be replaced by others of the same owner, without replacing them.

        :param files: name to path.
        :raises RefusedError: when one cannot be.
        """
        lacking = self.done(shell.try_replacing(files), "trying to replace the server's files").sections()
        if lacking:
            raise RefusedError(
                f"{self.where}: {'; '.join(lacking.values())}; expected that {self.commands.os_user} can replace the "
                "file, since a rollback shuts the recovered server to clients with it. Give that user the file and its "
                "folder"
            )

    def service_status(self) -> Service:
        """Ask the service manager whether Patroni runs: the command's exit status says so.

        :raises RefusedError: when the command is not there or not allowed.
        """
        result = self.run(f"{self.commands.status} </dev/null\n", as_owner=False)
        text = " ".join((result.output + " " + result.error).split())[:_SHOWN]
        if result.status in (126, 127) or "sudo:" in result.error:
            raise RefusedError(f"{self.where}: the registry's node.status command cannot be run; it said: {text}")
        return Service(result.status == 0, text)


def _lines(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        yield text[begin:end]
        begin = end + 1


def _named(found: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name[len(prefix) :]: text for name, text in found.items() if name.startswith(prefix)}


def _sentence(error: BaseException) -> str:
    """Return an error's first line, or its kind where it has no text."""
    if isinstance(error, socket.timeout | TimeoutError):
        return "timed out"
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def _parse_key(member: str, pinned: str) -> HostKey:
    kind, _, text = pinned.partition(" ")
    classes: dict[str, Any] = SSHHook._host_key_mappings
    if kind not in classes:
        raise ValueError(f"ssh_host_keys.{member}: unknown key type {kind!r}")
    key: HostKey = classes[kind](data=base64.b64decode(text.split()[0]))
    return key
