"""Who answers in Patroni's or in a node's place, on real sockets, and what one run under it costs.

A liar passes on what the real one says, but for the requests or commands that it was given a lie for.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import paramiko
from lab.cluster import Lab, Member
from lab.standalone import read_environment
from ruamel.yaml import YAML
from tests.cluster.scene import Scene
from tests.versions.inline import Inline

MEGABYTE = 1024 * 1024
MEMORY_LIMIT = 100 * MEGABYTE
SECONDS_LIMIT = 90
"""Up to three tasks of a run look three times each, before it gives up."""
STEP = 64 * 1024

Say = Callable[[bytes], None]
HttpLie = Callable[[Say, bytes], None]
"""Sends a whole answer, given the true body."""
Output = Callable[[Say, subprocess.CompletedProcess[bytes]], int | None]
"""Sends a command's output, given the true result; returns its exit status, or None to break the connection."""


def net(lab: Lab) -> str:
    """The first three numbers of the lab's addresses."""
    return next(iter(lab.nodes.values())).host.rsplit(".", 1)[0]


# Patroni

LIARS_PORT = 9008


def liar_url(member: Member) -> str:
    """Where a liar answers in the place of a member's REST API: on the member's own host."""
    return f"http://{member.host}:{LIARS_PORT}"


class _Request(socketserver.StreamRequestHandler):
    server: _HttpServer

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            method, path, _ = self.rfile.readline(65536).decode("latin-1").split(" ", 2)
            length = 0
            while (line := self.rfile.readline(65536)) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            body = self.rfile.read(length)
            self.server.liar.answer(self.connection.sendall, method, path, body)


class _HttpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    liar: LyingPatroni


class LyingPatroni:
    """A server in front of one member's REST API.

    :param lies: ``"GET /cluster"`` and the like to the lie that is told there; may be changed at any time.
    """

    def __init__(self, member: Member, lies: dict[str, HttpLie]) -> None:
        self.member, self.lies = member, lies
        self.asked: list[str] = []
        self.server = _HttpServer((member.host, LIARS_PORT), _Request)
        self.server.liar = self
        self.url = liar_url(member)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def answer(self, say: Say, method: str, path: str, body: bytes) -> None:
        """Answer one request."""
        question = f"{method} {path}"
        self.asked.append(question)
        try:
            with httpx.Client(trust_env=False, timeout=120) as client:
                true = client.request(method, self.member.rest + path, content=body)
        except httpx.ConnectError:
            # as a proxy does in front of one that is gone
            plainly(say, b"", status=502)
            return
        lie = self.lies.get(question) or (lambda say, content: plainly(say, content, status=true.status_code))
        lie(say, true.content)

    def close(self) -> None:
        """Answer nobody any more."""
        self.server.shutdown()
        self.server.server_close()


def plainly(say: Say, content: bytes, *, status: int = 200, headers: str = "") -> None:
    """Send a whole answer as HTTP has it."""
    say(f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode())
    say(content)


# Nodes


class _Session(paramiko.ServerInterface):
    def __init__(self, liar: LyingNode) -> None:
        self.liar = liar

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self.liar.run, args=(channel,), daemon=True).start()
        return True


class LyingNode:
    """An SSH server in front of one node, with a host key of its own, which the registry pins.

    :param lies: a word of the script to the lie that is told about its output; the first that is found is told.
    """

    def __init__(self, lab: Lab, name: str, host: str, lies: dict[str, Output]) -> None:
        self.lab, self.name, self.host, self.lies = lab, name, host, lies
        self.key = paramiko.ECDSAKey.generate()
        self.scripts: list[str] = []
        self.open = True
        self.listener = socket.create_server((host, lab.nodes[name].ssh_port))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def pin(self) -> str:
        """The host key as the registry has it."""
        return f"{self.key.get_name()} {self.key.get_base64()}"

    def _accept(self) -> None:
        while self.open:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                connection, _ = self.listener.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self.key)
                transport.start_server(server=_Session(self))

    def run(self, channel: paramiko.Channel) -> None:
        """Run one script on the real node, then say what the lie makes of it."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            script = b""
            while part := channel.recv(65536):
                script += part
            self.scripts.append(script.decode("utf-8", "replace"))
            true = subprocess.run(
                ["ssh", "-F", self.lab.info["ssh_config"], self.name, "/bin/sh -s"], input=script, capture_output=True
            )
            lie = next((lie for word, lie in self.lies.items() if word.encode() in script), truly)
            status = lie(channel.sendall, true)
            if status is None:
                channel.get_transport().sock.close()
                return
            channel.sendall_stderr(true.stderr)
            channel.send_exit_status(status)
            channel.shutdown_write()
            channel.close()

    def close(self) -> None:
        """Answer nobody any more."""
        self.open = False
        # Closing alone does not wake the thread that waits in accept().
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def truly(say: Say, true: subprocess.CompletedProcess[bytes]) -> int:
    """Say what the node has said."""
    if true.stdout:
        say(true.stdout)
    return true.returncode


# The registry


@contextlib.contextmanager
def registry(lab: Lab, run_folder: Path, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """The registry with one change to the lab's cluster; afterwards what it was."""
    path = Path(read_environment(run_folder)["BLUEGREEN_CLUSTERS"])
    text = path.read_text()
    yaml = YAML()
    found = yaml.load(text)
    change(found["clusters"][lab.name])
    try:
        with path.open("w") as file:
            yaml.dump(found, file)
        yield
    finally:
        path.write_text(text)


@contextlib.contextmanager
def lying_patronis(lab: Lab, run_folder: Path, lies: dict[str, HttpLie]) -> Iterator[list[LyingPatroni]]:
    """Servers in front of all members' REST APIs, which the registry and every member's api_url name."""

    def led_here(content: bytes) -> bytes:
        text = content.decode()
        for member in lab.nodes.values():
            text = text.replace(member.rest, liar_url(member))
        return text.encode()

    def cluster(say: Say, content: bytes) -> None:
        lies.get("GET /cluster", plainly)(say, led_here(content))

    servers: list[LyingPatroni] = []
    with contextlib.ExitStack() as stack:
        for member in lab.nodes.values():
            servers.append(LyingPatroni(member, {**lies, "GET /cluster": cluster}))
            stack.callback(servers[-1].close)
        urls = [server.url for server in servers]
        stack.enter_context(registry(lab, run_folder, lambda entry: entry.update(patroni=urls)))
        yield servers


@contextlib.contextmanager
def lying_node(lab: Lab, run_folder: Path, name: str, lies: dict[str, Output]) -> Iterator[LyingNode]:
    """A server in front of one node's SSH, which the registry names and pins."""
    server = LyingNode(lab, name, f"{net(lab)}.60", lies)

    def change(entry: dict[str, Any]) -> None:
        entry["ssh_hosts"][name] = server.host
        entry["ssh_host_keys"][name] = server.pin
        # its REST API has another address than its SSH now, so that nobody could tell who lives there without Patroni
        entry["patroni"].remove(lab.nodes[name].rest)

    try:
        with registry(lab, run_folder, change):
            yield server
    finally:
        server.close()


# What a run costs


@dataclass
class Cost:
    """What one run took."""

    state: str
    report: dict[str, Any] = field(repr=False)
    seconds: float
    grown: int

    @property
    def message(self) -> str:
        """The report's sentence."""
        return str(self.report.get("message"))


def _memory(process: int, which: str) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    match = re.search(rf"^{which}:\s+(\d+) kB", text, re.M)
    assert match
    return int(match[1]) * 1024


def costly(scene: Scene, dag: str, **conf: Any) -> Cost:
    """Run a DAG; return what it took in time, and how far its process's memory rose at the peak."""
    airflow = scene.airflow
    assert isinstance(airflow, Inline)
    pid = airflow.process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before, begin = _memory(pid, "VmRSS"), time.monotonic()
    state, report = scene.run(dag, **conf)
    return Cost(state, report, time.monotonic() - begin, _memory(pid, "VmHWM") - before)


def is_a_sentence(text: str) -> bool:
    """Whether this is one bounded line that a person can read."""
    return 10 < len(text) < 2500 and text.isprintable() and "Traceback" not in text and "without a sentence" not in text


def failed_clearly(cost: Cost, *words: str) -> None:
    """Raise unless the run ended in one sentence with one of these words, in time, and within its memory."""
    assert cost.state == "failed", cost.report
    assert cost.report.get("result") in ("refused", "failed"), cost.report
    assert is_a_sentence(cost.message), repr(cost.message[:3000])
    assert any(word in cost.message for word in words), cost.message
    assert cost.seconds < SECONDS_LIMIT, f"took {cost.seconds:.0f} s: {cost.message}"
    assert cost.grown < MEMORY_LIMIT, f"grew by {cost.grown / MEGABYTE:.0f} MB: {cost.message}"


def of_cluster(change: Callable[[dict[str, Any]], Any]) -> HttpLie:
    """A lie about the cluster that is well-formed."""

    def lie(say: Say, content: bytes) -> None:
        answer = json.loads(content)
        changed = change(answer)
        plainly(say, json.dumps(answer if changed is None else changed).encode())

    return lie
