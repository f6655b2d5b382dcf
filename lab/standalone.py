"""Airflow on this machine, for the lab: python -m lab.standalone start | stop | status | run.

The four components run side by side in one process group. `airflow standalone` does the same, but also opens
its log servers on all addresses; here nothing listens beyond loopback.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from lab.config import CHECKOUT, LabError, load_settings
from lab.machine import is_alive, is_free, owner

COMPONENTS = ("scheduler", "dag-processor", "triggerer", "api-server")
HEALTHY = ("metadatabase", "scheduler", "triggerer", "dag_processor")
# on one machine the logs are files that the web server reads itself
WITHOUT_LOG_SERVER = ("scheduler", "triggerer")


def read_environment(run: Path) -> dict[str, str]:
    """What airflow.env would give a shell.

    Raises:
        LabError: there is no such file yet.
    """
    file = run / "airflow.env"
    if not file.exists():
        raise LabError(f"There is no {file}: make lab")
    found = dict(os.environ)
    for line in file.read_text().splitlines():
        key, _, value = line.partition("=")
        if value.startswith('"'):
            value = value.replace("$PATH", os.environ.get("PATH", ""))
        (found[key],) = shlex.split(value)
    return found


def unhealthy(url: str) -> list[str]:
    """The components of the Airflow at this address that are not healthy; all of them where nothing answers."""
    try:
        answer = httpx.get(f"{url}/api/v2/monitor/health", timeout=5, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return list(HEALTHY)
    return [name for name in HEALTHY if (answer.get(name) or {}).get("status") != "healthy"]


class Airflow:
    """One Airflow, in the folder that airflow.env names."""

    def __init__(self, run: Path, environment: dict[str, str]) -> None:
        self.run = run
        self.environment = environment
        self.home = Path(environment["AIRFLOW_HOME"])
        self.url = environment["AIRFLOW__API__BASE_URL"]
        self.pid_file = self.home / "standalone.pid"
        self.log = self.home / "standalone.log"

    def group(self) -> int | None:
        """The process group of the running Airflow, or None; a number that others reuse does not count."""
        with contextlib.suppress(OSError, ValueError):
            group = int(self.pid_file.read_text())
            if self._members(group):
                return group
        return None

    def _members(self, group: int) -> list[psutil.Process]:
        """Living processes of this group that belong to this Airflow."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_ours = os.getpgid(process.pid) == group and is_alive(process)
                if is_ours and process.environ().get("AIRFLOW_HOME") == str(self.home):
                    found.append(process)
        return found

    def processes(self) -> list[psutil.Process]:
        """All that runs of it, its tasks too, which have process groups of their own; none where it does not run."""
        group = self.group()
        if group is None:
            return []
        return list({*self._members(group), *psutil.Process(group).children(recursive=True)})

    def unhealthy(self) -> list[str]:
        """The components that are not healthy; all of them where nothing answers."""
        return unhealthy(self.url)

    def start(self, timeout: float = 180) -> float | None:
        """Start it and wait until all components are healthy; None where it ran already.

        Raises:
            LabError: it ended, or is not healthy in time.
        """
        if self.group() is not None:
            self._wait_healthy(timeout)
            return None
        begin = time.monotonic()
        port = int(self.environment["AIRFLOW__API__PORT"])
        if not is_free("127.0.0.1", port):
            raise LabError(
                f"127.0.0.1:{port} is in use by {owner('127.0.0.1', port)}. Stop that, or remove "
                f"{self.run}/airflow.port for another port, and call make lab again"
            )
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lab.standalone", "run"],
                cwd=CHECKOUT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid_file.write_text(f"{process.pid}\n")
        self._wait_healthy(timeout, process)
        return time.monotonic() - begin

    def _wait_healthy(self, timeout: float, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + timeout
        while missing := self.unhealthy():
            if process and process.poll() is not None:
                raise LabError(f"Airflow ended with {process.returncode}; its log is {self.log}")
            if time.monotonic() > deadline:
                raise LabError(f"After {timeout:.0f} s not healthy: {', '.join(missing)}; the log is {self.log}")
            time.sleep(0.5)

    def stop(self, timeout: float = 20) -> bool:
        """End the whole process group; return whether there was one."""
        group = self.group()
        if group is None:
            return False
        # The first process passes the signal on, once: a second one would cut running tasks short.
        try:
            os.kill(group, signal.SIGTERM)
        except ProcessLookupError:
            os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while self._members(group):
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            time.sleep(0.1)
        self.pid_file.unlink(missing_ok=True)
        return True


def run() -> int:
    """Migrate the database and run the components until a signal comes, or one of them ends."""
    airflow = str(Path(sys.executable).parent / "airflow")
    subprocess.run([airflow, "db", "migrate"], check=True)
    children = {}
    for name in COMPONENTS:
        options = ["--skip-serve-logs"] if name in WITHOUT_LOG_SERVER else []
        children[name] = subprocess.Popen([airflow, name, *options])
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopped and all(child.poll() is None for child in children.values()):
        time.sleep(0.2)
    for name, child in children.items():
        if child.poll() is not None and not stopped:
            print(f"{name} ended with {child.returncode}: stopping the others", flush=True)
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
    for child in children.values():
        child.wait()
    return 0 if stopped else 1


def main() -> int:
    """Run one verb."""
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb == "run":
        return run()
    try:
        folder = load_settings().run
        if verb == "stop" and not (folder / "airflow.env").exists():
            print("No Airflow is running")
            return 0
        airflow = Airflow(folder, read_environment(folder))
        login = "admin, password in " + str(airflow.home / "passwords.json")
        if verb == "start":
            seconds = airflow.start()
            how = "is already running" if seconds is None else f"is healthy after {seconds:.0f} s"
            print(f"Airflow {how}: {airflow.url} ({login})")
        elif verb == "stop":
            print("Airflow is stopped" if airflow.stop() else "No Airflow is running")
        elif verb == "status":
            missing = airflow.unhealthy()
            print(f"not healthy: {', '.join(missing)}" if missing else f"healthy: {airflow.url} ({login})")
            return 3 if missing else 0
        else:
            print("usage: python -m lab.standalone start|stop|status|run", file=sys.stderr)
            return 2
    except LabError as error:
        print(f"airflow: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
