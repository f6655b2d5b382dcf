"""Two deployments through the real scheduler: one that is kept, and one that is rolled back."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lab.client import TERMINAL, AirflowClient, lab_client
from lab.cluster import Lab
from lab.config import LabError, load_settings
from lab.shop import State, seed, state
from lab.standalone import read_environment

DEADLINE_SECONDS = 300
OPERATIONS = ("checkpoint", "resume", "rollback")
SHOWN = {
    "success": "[green]done[/]",
    "failed": "[red]failed[/]",
    "running": "[yellow]running[/]",
    "deferred": "[yellow]waiting[/]",
    "skipped": "[dim]skipped[/]",
    "upstream_failed": "[dim]not run[/]",
    "up_for_retry": "[yellow]again soon[/]",
}


@dataclass
class Deployment:
    """One run of the deployment DAG and what was seen of it."""

    title: str
    run_id: str
    state: str = "queued"
    tasks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    deployed: State | None = None


def main() -> int:
    """Run the demo; 0 only when the data were proven on every member."""
    console = Console()
    try:
        settings = load_settings()
        lab = Lab.load(settings.run)
        lab.wait_healthy(90)
        client = lab_client(settings.run)
        problem = Demo(console, lab, client, settings.run).run()
    except (LabError, httpx.HTTPError, psycopg.Error, RuntimeError, TimeoutError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        console.print(f"\n[bold red]The demo failed:[/] {problem}")
        return 1
    return 0


class Demo:
    """The two deployments.

    :param run_dir: the lab's run folder.
    """

    def __init__(self, console: Console, lab: Lab, client: AirflowClient, run_dir: Path) -> None:
        self.console = console
        self.lab = lab
        self.client = client
        self.run_dir = run_dir

    def run(self) -> str:
        """Run both and return what is wrong, or an empty text."""
        started = time.monotonic()
        self._wait_for_dags()
        seed(self.lab)
        before = self._on_every_member()
        self.console.rule("[bold]1. A good deployment")
        _, good_report = self._deploy("good release", "good")
        if good_report.get("result") != "deployed":
            return f"the good deployment ended as {good_report.get('result')}: {good_report.get('message')}"
        after_good = self._on_every_member()
        self.console.rule("[bold]2. A bad deployment")
        bad, bad_report = self._deploy("bad release", "bad")
        if bad_report.get("result") != "rolled_back":
            return f"the bad deployment ended as {bad_report.get('result')}: {bad_report.get('message')}"
        after_rollback = self._on_every_member()
        self._rows(before, after_good, bad.deployed, after_rollback)
        self._seconds(good_report, bad_report)
        self._members(bad_report)
        self._where(time.monotonic() - started)
        if len(set(before.values()) | set(after_good.values())) != 2:
            return f"the good deployment is not the same on every member: {after_good}"
        if bad.deployed is None or bad.deployed in after_good.values():
            return "the bad deployment was not seen to change anything, so its rollback proves nothing"
        if set(after_rollback.values()) != set(after_good.values()):
            return f"the members do not hold the rows from before the bad deployment: {after_rollback}"
        self.console.print(
            f"\n[bold green]Proven:[/] all {len(after_rollback)} members hold the rows from before the bad deployment."
        )
        return ""

    def _wait_for_dags(self) -> None:
        wanted = {f"bluegreen_{name}" for name in ("checkpoint", "deploy", "resume", "rollback", "monitor")}
        deadline = time.monotonic() + 60
        while not wanted <= {dag["dag_id"] for dag in self.client.get("dags", limit=100)["dags"]}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Airflow does not know the DAGs: {self.client.get('importErrors')}")
            time.sleep(0.5)

    def _on_every_member(self) -> dict[str, State]:
        """Read every member once all have replayed the same."""
        deadline = time.monotonic() + 30
        while True:
            found = {name: state(self.lab, name) for name in self.lab.names}
            if len(set(found.values())) == 1 or time.monotonic() > deadline:
                return found
            time.sleep(0.3)

    def _deploy(self, title: str, deployment: str) -> tuple[Deployment, dict[str, Any]]:
        conf = {"cluster": self.lab.name, "label": title, "deployment": deployment}
        shown = Deployment(title, self.client.trigger("bluegreen_deploy", conf))
        deadline = time.monotonic() + DEADLINE_SECONDS
        with Live(self._steps(shown), console=self.console, refresh_per_second=4) as live:
            while shown.state not in TERMINAL:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{title} is {shown.state} after {DEADLINE_SECONDS} s")
                time.sleep(0.3)
                self._look(shown)
                live.update(self._steps(shown))
        report = self.client.xcom("bluegreen_deploy", shown.run_id, "report") or {}
        self.console.print(Text(str(report.get("message", "no report")), style="italic"))
        return shown, report

    def _look(self, shown: Deployment) -> None:
        shown.tasks["deploy"] = self.client.tasks("bluegreen_deploy", shown.run_id)
        for operation in OPERATIONS:
            child = f"{shown.run_id}__bluegreen_{operation}__0"
            try:
                shown.tasks[operation] = self.client.tasks(f"bluegreen_{operation}", child)
            except httpx.HTTPStatusError:
                continue
        states = {task["task_id"]: task["state"] for task in shown.tasks["deploy"]}
        if shown.deployed is None and states.get("deploy") in {"success", "failed"}:
            leader = self.lab.leader()
            if leader:
                shown.deployed = state(self.lab, leader)
        shown.state = self.client.state("bluegreen_deploy", shown.run_id)

    def _steps(self, shown: Deployment) -> Group:
        table = Table(title=shown.title, title_justify="left", show_edge=False, pad_edge=False)
        table.add_column("DAG")
        table.add_column("step")
        table.add_column("state")
        table.add_column("seconds", justify="right")
        for name, tasks in shown.tasks.items():
            begun = [task for task in tasks if task["start_date"] and task["state"] not in {None, "skipped"}]
            for task in sorted(begun, key=lambda task: str(task["start_date"])):
                member = f" {task['rendered_map_index']}" if task.get("map_index", -1) >= 0 else ""
                seconds = f"{task['duration']:.1f}" if task["duration"] else ""
                table.add_row(name, task["task_id"] + member, SHOWN.get(task["state"], task["state"]), seconds)
        return Group(table)

    def _rows(
        self, before: dict[str, State], good: dict[str, State], bad: State | None, restored: dict[str, State]
    ) -> None:
        table = Table(title="What the database holds", title_justify="left")
        for column in ("", "member", "tables", "orders", "sum of totals", "sum over all rows"):
            table.add_column(column)
        for title, found in (
            ("before", before),
            ("after the good deployment", good),
            ("after the bad migration", {"leader": bad}),
            ("after the rollback", restored),
        ):
            for name, one in found.items():
                if one is not None:
                    table.add_row(title, name, str(one.tables), str(one.orders), one.total, one.sum)
                title = ""
            table.add_section()
        self.console.print(table)

    def _seconds(self, *reports: dict[str, Any]) -> None:
        table = Table(title="Seconds per phase", title_justify="left")
        table.add_column("phase")
        for title in ("good deployment", "bad deployment"):
            table.add_column(title, justify="right")
        phases = dict.fromkeys(phase for report in reports for phase in report["seconds"])
        for phase in phases:
            table.add_row(phase, *(_number(report["seconds"].get(phase)) for report in reports))
        self.console.print(table)

    def _members(self, report: dict[str, Any]) -> None:
        table = Table(title="Members", title_justify="left")
        for column in ("member", "role", "state", "timeline", "came back by"):
            table.add_column(column)
        for name, member in sorted(report["members"].items()):
            how = member.get("rejoined_by", "recovered to the mark" if member["role"] == "leader" else "")
            table.add_row(name, member["role"], member["state"], str(member["timeline"]), how)
        self.console.print(table)
        self.console.print(f"History: {report.get('branch_line')}")

    def _where(self, seconds: float) -> None:
        environment = read_environment(self.run_dir)
        self.console.print(
            f"\nTook {seconds:.0f} s. Airflow runs on {self.client.base_url} "
            f"(user admin, password {self._password(environment)}); `make down` stops everything."
        )

    def _password(self, environment: dict[str, str]) -> str:
        path = Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
        return str(json.loads(path.read_text())["admin"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
