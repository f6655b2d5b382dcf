"""A small SSH server in this process, whose every command a test can spoil."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko

from bluegreen.clusters import Cluster, NodeCommands
from bluegreen.hooks.node import NodeHook

HOST_KEY = paramiko.ECDSAKey.generate()
OTHER_KEY = paramiko.ECDSAKey.generate()

Behaviour = Callable[["Session"], None]


class Session:
    """One command that a client asked for."""

    def __init__(self, server: SshServer, channel: paramiko.Channel, command: str) -> None:
        self.server = server
        self.channel = channel
        self.command = command

    def script(self) -> bytes:
        """Return all that the client sends on standard input."""
        return b"".join(iter(lambda: self.channel.recv(65536), b""))

    def lose(self) -> None:
        """Cut the connection."""
        self.server.cut()


def really_run(session: Session) -> None:
    """Run the command as sshd would, without a shell of its own."""
    done = subprocess.run(session.command.split(), input=session.script(), capture_output=True, check=False)
    session.channel.sendall(done.stdout)
    session.channel.sendall_stderr(done.stderr)
    session.channel.send_exit_status(done.returncode)
    session.channel.shutdown_write()


class SshServer(paramiko.ServerInterface):
    """Accepts the user ada with the password hunter2."""

    def __init__(self, behaviour: Behaviour = really_run) -> None:
        self.behaviour = behaviour
        self.commands: list[str] = []
        self.refuse_sessions = False
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._transports: list[paramiko.Transport] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(HOST_KEY)
            self._transports.append(transport)
            try:
                transport.start_server(server=self)
            except (paramiko.SSHException, EOFError, OSError):
                continue

    def cut(self) -> None:
        # not those that come meanwhile, of a client that connects again at once
        for transport in list(self._transports):
            transport.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            # Closing alone does not wake the thread that waits in accept(), and it would take one more.
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        for transport in self._transports:
            transport.close()

    @property
    def connections(self) -> int:
        return len(self._transports)

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if (username, password) == ("ada", "hunter2") else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self.refuse_sessions:
            return paramiko.OPEN_FAILED_RESOURCE_SHORTAGE
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.commands.append(command.decode())
        session = Session(self, channel, command.decode())

        def work() -> None:
            # The answer to the request itself must be out before what the command does.
            time.sleep(0.02)
            try:
                self.behaviour(session)
                channel.close()
            except (OSError, EOFError, paramiko.SSHException):
                return

        threading.Thread(target=work, daemon=True).start()
        return True


def connection(port: int, **more: Any) -> str:
    """Return an Airflow connection to a server, as an environment variable holds it."""
    values = {"conn_type": "ssh", "login": "ada", "password": "hunter2", "port": port, **more}
    extra = {"look_for_keys": "false", "allow_host_key_change": "false", **values.pop("extra", {})}
    return json.dumps({**values, "extra": extra})


def host_key(key: paramiko.PKey = HOST_KEY) -> str:
    return f"{key.get_name()} {base64.b64encode(key.asbytes()).decode()}"


def node(
    *,
    config: str = "/etc/patroni/patroni.yml",
    os_user: str = "ada",
    pinned: str | None = None,
    keys: dict[str, str] | None = None,
    member: str = "n1",
) -> NodeHook:
    """Return a hook for the connection ``orders_ssh``."""
    if keys is None:
        keys = {"n1": host_key() if pinned is None else pinned} if pinned != "" else {}
    cluster = Cluster(
        name="orders",
        patroni=["http://10.0.0.1:8008"],
        postgres_conn_id="orders_postgres",
        ssh_conn_id="orders_ssh",
        ssh_host_keys=keys,
        node=NodeCommands(patroni_config=config, os_user=os_user, start="echo started", stop="exit 3", status="true"),
    )
    return NodeHook(cluster, member, "127.0.0.1")
