"""The process manager, over its own socket: faster than its command line, and it answers in data."""

from __future__ import annotations

import http.client
import socket
import time
import xmlrpc.client
from pathlib import Path
from typing import Any, NamedTuple

from lab.config import LabError

RUNNING = ("RUNNING", "STARTING")
NOT_RUNNING, ALREADY_STARTED = 70, 60  # supervisor/xmlrpc.py, class Faults


class Program(NamedTuple):
    """One program as the process manager sees it."""

    name: str
    state: str
    pid: int

    @property
    def is_up(self) -> bool:
        """Whether its process lives."""
        return self.state in RUNNING


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=70)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _Connection(self.path)


class Supervisor:
    """Start, stop and look at programs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rpc: Any = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_Transport(str(path))).supervisor

    def is_up(self) -> bool:
        """Whether the process manager answers."""
        try:
            return self.rpc.getState()["statename"] == "RUNNING"
        except (OSError, http.client.HTTPException, xmlrpc.client.Fault):  # the last: it is shutting down
            return False

    def programs(self) -> dict[str, Program]:
        """All programs by name."""
        return {one["name"]: _program(one) for one in self.rpc.getAllProcessInfo()}

    def program(self, name: str) -> Program:
        """One program."""
        return _program(self.rpc.getProcessInfo(name))

    def start(self, *names: str) -> None:
        """Start these programs; those that run already stay as they are."""
        for name in names:
            self._ignoring(ALREADY_STARTED, self.rpc.startProcess, name, False)

    def stop(self, *names: str, timeout: float = 65) -> None:
        """Stop these programs side by side, and wait until their processes are gone."""
        for name in names:
            self._ignoring(NOT_RUNNING, self.rpc.stopProcess, name, False)
        self.wait_down(*names, timeout=timeout)

    def kill(self, *names: str) -> None:
        """Send SIGKILL to these programs, and wait until those processes are gone; some are started again."""
        killed = {name: pid for name in names if (pid := self.program(name).pid)}
        for name in killed:
            self._ignoring(NOT_RUNNING, self.rpc.signalProcess, name, "KILL")
        deadline = time.monotonic() + 10
        while left := [name for name, pid in killed.items() if self.program(name).pid == pid]:
            if time.monotonic() > deadline:
                raise LabError(f"{', '.join(left)} did not end within 10 s of SIGKILL")
            time.sleep(0.05)

    def wait_down(self, *names: str, timeout: float) -> None:
        """Wait until none of these programs has a process."""
        deadline = time.monotonic() + timeout
        while left := [one.name for one in self.programs().values() if one.name in names and one.pid]:
            if time.monotonic() > deadline:
                raise LabError(f"{', '.join(left)} did not stop within {timeout:.0f} s")
            time.sleep(0.05)

    def shutdown(self, timeout: float = 70) -> None:
        """Stop everything, the process manager last."""
        self.rpc.shutdown()
        deadline = time.monotonic() + timeout
        while self.is_up() or self.path.exists():
            if time.monotonic() > deadline:
                raise LabError(f"The process manager did not stop within {timeout:.0f} s")
            time.sleep(0.05)

    @staticmethod
    def _ignoring(fault: int, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except xmlrpc.client.Fault as error:
            if error.faultCode != fault:
                raise LabError(f"{arguments[0]}: {error.faultString}") from None


def _program(info: dict[str, Any]) -> Program:
    return Program(info["name"], info["statename"], info["pid"])
