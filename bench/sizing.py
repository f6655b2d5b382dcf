"""What a look of the monitor costs, by the number of clusters: the figures for the sizing of Airflow.

python bench/sizing.py         the lab under up to a hundred names, results in bench/results/sizing.json
SIZES="1 10" python ...        other numbers of clusters
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import lifecycle
from lab.client import AirflowClient, lab_client
from lab.cluster import Lab
from lab.config import load_settings
from lab.standalone import Airflow, read_environment

from bench.bench import MONITOR, idle_memory, is_airflows, machine, memory_mb, wait_for_dags

SIZES = tuple(int(word) for word in os.environ.get("SIZES", "1 10 25 50 100").split())
RESULTS = Path(__file__).parent / "results" / "sizing.json"
RUN_SECONDS = 900

console = Console(highlight=False)


@dataclass
class Meter:
    """Processor time and memory of Airflow and of the lab's nodes while a run lasts.

    :param folder: where the lab's nodes live; processes that work in it are theirs.
    """

    airflow: Airflow
    folder: str
    peak_mb: float = 0
    _end: threading.Event = field(default_factory=threading.Event)

    def processor_seconds(self) -> dict[str, float]:
        """Seconds so far, of the living and of those whose parents have seen their end."""
        is_ours, found = is_airflows(self.airflow), {"airflow": 0.0, "nodes": 0.0}
        for process in psutil.process_iter():
            # one that ends meanwhile is counted by its parent; one that may not be looked into is nobody's here
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                seconds = times.user + times.system + times.children_user + times.children_system
                if is_ours(process):
                    found["airflow"] += seconds
                elif any(self.folder in word for word in process.cmdline()) or process.cwd().startswith(self.folder):
                    found["nodes"] += seconds
        return found

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the highest memory of Airflow meanwhile."""
        self.peak_mb, self._end = 0, threading.Event()

        def watch() -> None:
            while True:
                self.peak_mb = max(self.peak_mb, memory_mb(is_airflows(self.airflow)))
                if self._end.wait(1):
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join(30)


@contextlib.contextmanager
def registry_of(file: Path) -> Iterator[Any]:
    """Give a function that makes the registry name the lab's cluster so many times; the old text comes back."""
    before = file.read_text()
    yaml = YAML()
    (entry,) = yaml.load(before)["clusters"].values()

    def write(number: int) -> None:
        with file.open("w") as out:
            YAML().dump({"clusters": {f"c{index:03}": dict(entry) for index in range(number)}}, out)

    try:
        yield write
    finally:
        file.write_text(before)


def one_run(client: AirflowClient, meter: Meter, clusters: int) -> dict[str, Any]:
    """Let the monitor, which is paused, run once and measure it."""
    logs, database = meter.airflow.home / "logs", meter.airflow.home / "airflow.db"
    # a paused DAG runs nothing; the run of a minute that has just begun starts as soon as it is not
    time.sleep(61 - time.time() % 60)
    before = meter.processor_seconds(), _size(logs), _size(database)
    with meter.watched():
        since = datetime.now(UTC).isoformat()
        pause(client, False)
        try:
            run_id = _first_since(client, since)
            state = client.wait(MONITOR, run_id, seconds=RUN_SECONDS, every_seconds=1)
        finally:
            _quiet(client)
    run = client.get(f"dags/{MONITOR}/dagRuns/{run_id}")
    begin, end = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    after = meter.processor_seconds(), _size(logs), _size(database)
    if not all(after[0][who] > before[0][who] for who in before[0]):
        raise RuntimeError(
            f"the processor time of {', '.join(before[0])} cannot be seen by this user: {before}, {after}"
        )
    looks = [task for task in client.tasks(MONITOR, run_id) if task["task_id"] == "look"]
    if state != "success" or len(looks) != clusters:
        raise RuntimeError(f"{MONITOR} of {clusters} clusters: {state}, {len(looks)} looks")
    return {
        "clusters": clusters,
        "run_seconds": round((end - begin).total_seconds(), 1),
        "look_seconds": round(statistics.median(task["duration"] for task in looks), 2),
        "airflow_processor_seconds": round(after[0]["airflow"] - before[0]["airflow"], 1),
        "nodes_processor_seconds": round(after[0]["nodes"] - before[0]["nodes"], 1),
        "airflow_peak_mb": meter.peak_mb,
        "log_kb": round((after[1] - before[1]) / 1024),
        "database_kb": round((after[2] - before[2]) / 1024),
    }


def pause(client: AirflowClient, paused: bool) -> None:
    """Stop or start the schedule of the monitor."""
    client.request("PATCH", f"dags/{MONITOR}", {"is_paused": paused}).raise_for_status()


def _first_since(client: AirflowClient, since: str) -> str:
    deadline = time.monotonic() + 90
    while True:
        runs = client.get(f"dags/{MONITOR}/dagRuns", order_by="-start_date", limit=5)["dag_runs"]
        new = [run["dag_run_id"] for run in runs if (run["start_date"] or "") >= since]
        if new:
            return str(new[-1])
        if time.monotonic() > deadline:
            raise TimeoutError(f"no run of {MONITOR} has begun")
        time.sleep(0.5)


def _quiet(client: AirflowClient) -> None:
    """Stop the schedule, and end what of it runs: a run of a paused DAG would wait, and go on beside the next one."""
    pause(client, True)
    for run in client.get(f"dags/{MONITOR}/dagRuns", state=["queued", "running"], limit=10)["dag_runs"]:
        path = f"dags/{MONITOR}/dagRuns/{run['dag_run_id']}"
        client.request("PATCH", path, {"state": "failed"}).raise_for_status()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def main() -> int:
    """Measure, write and show."""
    settings = load_settings()
    lifecycle.up(settings, lambda _: None)
    lab = Lab.load(settings.run)
    environment = read_environment(settings.run)
    airflow = Airflow(settings.run, environment)
    was_stopped = airflow.start() is not None
    meter, found = Meter(airflow, str(lab.info["directory"])), []
    client = lab_client(settings.run)
    wait_for_dags(client)
    was_paused = bool(client.get(f"dags/{MONITOR}")["is_paused"])
    _quiet(client)
    idle = idle_memory(lab, airflow)
    try:
        with lifecycle.alone(settings), registry_of(Path(environment["BLUEGREEN_CLUSTERS"])) as write:
            for number in SIZES:
                write(number)
                found.append(one_run(client, meter, number))
                console.print(f"{number:>4} clusters: {found[-1]}", markup=False)
    finally:
        try:
            pause(lab_client(settings.run), was_paused)
        except httpx.HTTPError as error:
            # an error that is under way must not be hidden by this one
            console.print(f"{MONITOR} is left paused: {error}", markup=False)
        if was_stopped:
            airflow.stop()
    result = {
        "runs": found,
        "idle_memory": idle,
        "parallelism": int(environment["AIRFLOW__CORE__PARALLELISM"]),
        "machine": machine(lab),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(found)
    return 0


def show(found: list[dict[str, Any]]) -> None:
    """The table for a person."""
    table = Table(title="One run of the monitor", title_justify="left")
    for heading in found[0]:
        table.add_column(heading.replace("_", " "), justify="right", overflow="fold")
    for one in found:
        table.add_row(*(str(value) for value in one.values()))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
