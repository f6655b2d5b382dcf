"""The demo's two deployments on this stack, while a client writes and reads through HAProxy."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import httpx
import psycopg
from rich.console import Console

from lab.client import AirflowClient, lab_client
from lab.compose.files import RUN
from lab.compose.stack import ComposeLab
from lab.compose.traffic import Traffic
from lab.config import LabError
from lab.demo import Demo, Deployment

# how long the client goes on afterwards, so that what it reads then says something
AFTERWARDS_SECONDS = 5


class ComposeDemo(Demo):
    """The same two deployments, and when each step of them began and ended."""

    def __init__(self, console: Console, lab: ComposeLab, client: AirflowClient) -> None:
        super().__init__(console, lab, client, RUN)
        self.spans: dict[str, tuple[float, float]] = {}
        self.shown: dict[str, Deployment] = {}
        self.reports: dict[str, dict[str, Any]] = {}

    def _deploy(self, title: str, deployment: str) -> tuple[Deployment, dict[str, Any]]:
        begin = time.time()
        shown, report = super()._deploy(title, deployment)
        self.spans[deployment], self.reports[deployment] = (begin, time.time()), report
        self.shown[deployment] = shown
        return shown, report

    def moment(self, deployment: str, operation: str, task_id: str, what: str) -> float:
        """When a task of a deployment began (``start_date``) or ended (``end_date``), in seconds since the epoch."""
        (task,) = (one for one in self.shown[deployment].tasks[operation] if one["task_id"] == task_id)
        return epoch(task[what])

    def _where(self, seconds: float) -> None:
        self.console.print(
            f"\nTook {seconds:.0f} s. Airflow runs on {self.client.base_url} (user admin, password in "
            f"{RUN}/passwords.json); `make compose-down` stops everything."
        )


def main() -> int:
    """Run the demo; 0 only when the data were proven, and the client saw nothing that it must not."""
    console = Console()
    try:
        lab = ComposeLab.load(RUN)
        lab.wait_healthy(90)
        demo = ComposeDemo(console, lab, lab_client(RUN))
        ports = lab.info["leader_port"], lab.info["replica_port"]
        with Traffic(*ports, lab.info["users"]["release"]) as traffic:
            problem = demo.run()
            time.sleep(AFTERWARDS_SECONDS)
        problem = problem or _client(console, demo, traffic)
    except (LabError, httpx.HTTPError, psycopg.Error, RuntimeError, TimeoutError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        console.print(f"\n[bold red]The demo failed:[/] {problem}")
        return 1
    return 0


def epoch(text: str) -> float:
    """A moment as Airflow and the reports write it, in seconds since the epoch."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _client(console: Console, demo: ComposeDemo, traffic: Traffic) -> str:
    """Print what the client has seen; return what it must not have seen."""
    begin, end = demo.spans["good"]
    mark = epoch(demo.reports["bad"]["checkpoint"]["taken_at"])
    stopped = demo.moment("bad", "rollback", "stop", "start_date")
    done = demo.moment("bad", "rollback", "report", "end_date")
    good = [one for one in traffic.writes if not one.error and begin <= one.begin <= end]
    console.print("\nWhat the client saw through HAProxy")
    console.print(f"  good deployment: {len(good)} writes, {len(traffic.errors(begin, end))} errors")
    if errors := [one for one in traffic.errors(0, stopped) if one.end < stopped]:
        return f"the client had errors before the rollback, the first: {errors[0]}"
    if not good:
        return "the client wrote nothing during the good deployment"
    spans = traffic.interruptions(mark, done)
    lengths = ", ".join(f"{b - a:.1f} s" for a, b in spans)
    console.print(f"  bad deployment:  {len(spans)} interruption{'' if len(spans) == 1 else 's'} of writes, {lengths}")
    faults = traffic.faults(mark, done, traffic.kept(), len(demo.lab.names) - 1)
    if faults:
        return "; ".join(faults)
    console.print("  afterwards:      only rows from before the mark, and those written after the rollback")
    return ""
