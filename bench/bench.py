"""The checkpoint and the rollback DAG against the same done by hand, alternating, on the lab.

make bench                     five rounds, results in bench/results/rollback.json
BENCH_ROUNDS=1 make bench      fewer
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import lifecycle
from lab.client import AirflowClient, lab_client
from lab.cluster import Lab
from lab.config import Settings, load_settings
from lab.standalone import Airflow, read_environment

from bench.by_hand import ByHand

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SNAPSHOT = "bench"
RESULTS = Path(__file__).parent / "results" / "rollback.json"
MONITOR = "bluegreen_monitor"
TARGETS = {"writable_ratio": 2.0, "redundant_ratio": 1.5, "checkpoint_ratio": 3.0}
MEASURED = {"checkpoint": "checkpoint_ratio", "writable": "writable_ratio", "redundant": "redundant_ratio"}
TIMEOUT_SECONDS = 240

SEED = """
create table orders (id int primary key, customer text not null, total numeric not null);
insert into orders select i, 'customer ' || i % 100, i * 1.25 from generate_series(1, 1000) i;
create table heartbeat (id bigint generated always as identity, member text, at timestamptz default clock_timestamp());
"""
BAD = """
update orders set total = 0 where id % 3 = 0;
delete from orders where id % 10 = 0;
create table debris as select generate_series(1, 20000) as i;
"""
FINGERPRINT = "select md5(string_agg(o::text, ',' order by id)) from orders o"
# One statement: on a server with other rows nothing is written, on a standby it fails.
WRITE = f"insert into heartbeat (member) select %s where ({FINGERPRINT}) = %s returning id"

console = Console(highlight=False)


class Prober:
    """A client of the database that tries to write on every member, every 20 ms, and looks at the whole cluster.

    :param rows: the fingerprint of the state to come back to.
    """

    def __init__(self, lab: Lab, rows: str) -> None:
        self.lab = lab
        self.rows = rows
        self.any_commit: float | None = None
        self.writable: float | None = None
        self.redundant: float | None = None
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(name,), daemon=True) for name in lab.names]
        self._threads.append(threading.Thread(target=self._look, daemon=True))

    def __enter__(self) -> Prober:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(10)

    def wait(self) -> None:
        """Wait until all has been seen."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.redundant is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"writable: {self.writable}, redundant: {self.redundant}; {self.lab.trouble()}")
            time.sleep(0.05)

    def _write(self, name: str) -> None:
        """Keep a connection as long as it lives: what costs is a login, which a loaded machine would feel."""
        connection: psycopg.Connection[Any] | None = None
        with httpx.Client(timeout=2, trust_env=False) as http:
            while not self._end.wait(0.02) and self.writable is None:
                try:
                    if connection is None or connection.closed:
                        connection = self.lab.connect(name, connect_timeout=2, options="-c statement_timeout=2000")
                    if not connection.execute(WRITE, (name, self.rows)).fetchall():
                        continue
                    self.any_commit = self.any_commit or time.monotonic()
                    if http.get(f"{self.lab.nodes[name].rest}/primary").status_code != 200:
                        continue
                    connection.execute(WRITE, (name, self.rows))
                    self.writable = self.writable or time.monotonic()
                except psycopg.errors.ReadOnlySqlTransaction:
                    continue
                except psycopg.Error:
                    if connection is not None:
                        connection.close()
                    connection = None
                except httpx.HTTPError:
                    continue
        if connection is not None:
            connection.close()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            if self.writable is None:
                continue
            try:
                if not self.lab.trouble():
                    self.redundant = time.monotonic()
                    return
            except (httpx.HTTPError, psycopg.Error, KeyError):
                continue


@dataclass
class Way:
    """One way to do it, and what was measured."""

    name: str
    seconds: list[dict[str, float]] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """The median of each value."""
        return {key: round(statistics.median(one[key] for one in self.seconds), 2) for key in self.seconds[0]}


class Bench:
    """Rounds on one lab."""

    def __init__(self, settings: Settings, lab: Lab, client: AirflowClient) -> None:
        self.settings = settings
        self.lab = lab
        self.client = client
        self.script = Way("script")
        self.woken = Way("script, which wakes Patroni after its reload")
        self.dag = Way("DAG")

    def prepare(self) -> None:
        """Keep a snapshot with the seeded table."""
        lifecycle.reset(self.settings, lifecycle.FRESH)
        leader = self.lab.wait_leader(30)
        self.lab.sql(leader, SEED, user="release")
        self.lab.sql(leader, "grant all on orders, heartbeat to public", user="release")
        self._wait_replayed(leader)
        lifecycle.snapshot(self.settings, SNAPSHOT)

    def _wait_replayed(self, leader: str) -> None:
        deadline = time.monotonic() + 30
        while len({self._fingerprint(name) for name in self.lab.names}) != 1:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the members do not hold the rows of {leader}")
            time.sleep(0.1)

    def _fingerprint(self, name: str) -> str:
        try:
            return str(self.lab.value(name, FINGERPRINT))
        except psycopg.errors.UndefinedTable:
            return name

    def round(self, way: Way, checkpoint: Callable[[], Any], rollback: Callable[[Any], dict[str, Any]]) -> None:
        """One checkpoint, one bad deployment, one rollback, from the same state."""
        lifecycle.reset(self.settings, SNAPSHOT)
        rows = self._fingerprint(self.lab.wait_leader(30))
        before = psutil.getloadavg()[0]
        proven_seconds, record, details = checkpoint()
        leader = self.lab.wait_leader(30)
        self.lab.sql(leader, BAD, user="release")
        with Prober(self.lab, rows) as prober:
            time.sleep(1)
            begin = time.monotonic()
            details |= rollback(record)
            prober.wait()
        assert prober.any_commit and prober.writable and prober.redundant
        found = {name: self._fingerprint(name) for name in self.lab.names}
        if set(found.values()) != {rows}:
            raise RuntimeError(f"after the rollback of {way.name} the rows are not those before it: {found}, {rows}")
        measured = {
            "checkpoint": proven_seconds,
            "any_commit": prober.any_commit - begin,
            "writable": prober.writable - begin,
            "redundant": prober.redundant - begin,
        }
        way.seconds.append({name: round(value, 3) for name, value in measured.items()})
        way.details.append({"load_average_1min": round(before, 1), **details})
        console.print(f"{way.name:>7}: " + ", ".join(f"{name} {value:.1f} s" for name, value in measured.items()))

    def by_hand(self) -> None:
        """One round of the script."""
        with ByHand(self.lab) as hand:

            def checkpoint() -> tuple[float, Any, dict[str, Any]]:
                begin = time.monotonic()
                record = hand.checkpoint()
                return time.monotonic() - begin, record, {}

            self.round(self.script, checkpoint, lambda record: {"steps": hand.rollback(record)})

    def by_hand_woken(self) -> None:
        """A checkpoint of the script that also wakes Patroni's loop, for comparison; no rollback."""
        lifecycle.reset(self.settings, SNAPSHOT)
        with ByHand(self.lab, woken=True) as hand:
            begin = time.monotonic()
            hand.checkpoint()
            self.woken.seconds.append({"checkpoint": round(time.monotonic() - begin, 3)})
        console.print(f"  woken: checkpoint {self.woken.seconds[-1]['checkpoint']:.1f} s")

    def by_dag(self) -> None:
        """One round of the DAGs."""

        def checkpoint() -> tuple[float, Any, dict[str, Any]]:
            begin = datetime.now(UTC)
            run_id = self._trigger("bluegreen_checkpoint", {"label": "bench"})
            report = self._finish("bluegreen_checkpoint", run_id, "held")
            tasks = _timeline(self.client.tasks("bluegreen_checkpoint", run_id), begin)
            (record,) = (task for task in tasks if task["task"] == "record")
            return record["end"], report["checkpoint"]["id"], {"checkpoint_tasks": tasks}

        def rollback(checkpoint_id: str) -> dict[str, Any]:
            begin = datetime.now(UTC)
            conf = {"checkpoint": checkpoint_id, "confirm": self.lab.name, "reason": "benchmark"}
            run_id = self._trigger("bluegreen_rollback", conf)
            report = self._finish("bluegreen_rollback", run_id, "rolled_back")
            tasks = _timeline(self.client.tasks("bluegreen_rollback", run_id), begin)
            return {
                "rollback_tasks": tasks,
                "rejoined_by": {name: one.get("rejoined_by") for name, one in report["members"].items()},
            }

        self.round(self.dag, checkpoint, rollback)

    def _trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        return self.client.trigger(dag_id, {"cluster": self.lab.name, **conf})

    def _finish(self, dag_id: str, run_id: str, wanted: str) -> dict[str, Any]:
        # Rarely: each look costs the API server time that the run's own tasks want.
        self.client.wait(dag_id, run_id, seconds=TIMEOUT_SECONDS, every_seconds=1)
        report = self.client.xcom(dag_id, run_id, "report") or {}
        if report.get("result") != wanted:
            raise RuntimeError(f"{dag_id}: {report.get('message')} [{self.client.summary(dag_id, run_id)}]")
        return dict(report)


def _timeline(tasks: list[dict[str, Any]], begin: datetime) -> list[dict[str, Any]]:
    """When each task was queued, began and ended, in seconds since the trigger."""

    def since(text: str | None) -> float | None:
        return None if text is None else round((datetime.fromisoformat(text) - begin).total_seconds(), 2)

    found = []
    for task in tasks:
        if task["start_date"] is None or task["state"] == "skipped":
            continue
        index = task["map_index"]
        found.append(
            {
                "task": task["task_id"] + (f"[{index}]" if index >= 0 else ""),
                "queued": since(task["queued_when"]),
                "start": since(task["start_date"]),
                "end": since(task["end_date"]),
                "state": task["state"],
            }
        )
    return sorted(found, key=lambda task: (task["start"], task["end"] or 0))


def is_airflows(airflow: Airflow) -> Callable[[psutil.Process], bool]:
    """Tell Airflow's processes from the others, as they are now."""
    found = {process.pid for process in airflow.processes()}
    return lambda process: process.pid in found


def memory_mb(wanted: Callable[[psutil.Process], bool]) -> float:
    """The proportional set size of some processes."""
    total = 0
    for process in psutil.process_iter():
        try:
            if wanted(process):
                total += process.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return round(total / 2**20, 1)


def idle_memory(lab: Lab, airflow: Airflow) -> dict[str, float]:
    """What Airflow and the lab take while nothing happens, in MB."""
    folder = str(lab.info["directory"])

    def of_lab(process: psutil.Process) -> bool:
        return process.cwd().startswith(folder) or any(folder in word for word in process.cmdline())

    return {
        "airflow_mb": memory_mb(is_airflows(airflow)),
        "lab_mb": memory_mb(of_lab),
    }


def show(bench: Bench, result: dict[str, Any]) -> None:
    """The table for a person."""
    table = Table(title=f"Medians of {len(bench.dag.seconds)} rounds, in seconds", title_justify="left")
    for heading in ("", "script", "DAG", "ratio", "target"):
        table.add_column(heading, justify="left" if not heading else "right")
    named = {
        "checkpoint": "checkpoint proven",
        "any_commit": "first commit at the old state",
        "writable": "first commit on the leader",
        "redundant": "all members stream",
    }
    for key, text in named.items():
        ratio, target = result["ratios"][key], TARGETS.get(MEASURED.get(key, ""))
        colour = "green" if target is None or ratio <= target else "red"
        table.add_row(
            text,
            f"{result['medians']['script'][key]:.2f}",
            f"{result['medians']['dag'][key]:.2f}",
            f"[{colour}]{ratio:.2f}[/]",
            f"{target:.1f}" if target else "",
        )
    console.print(table)
    for key, text in (("checkpoint_tasks", "checkpoint"), ("rollback_tasks", "rollback")):
        shown = Table(title=f"The {text} DAG, last round, in seconds since the trigger", title_justify="left")
        for heading in ("task", "queued", "start", "end", "took"):
            shown.add_column(heading, justify="left" if heading == "task" else "right")
        for task in bench.dag.details[-1][key]:
            cells = [task[name] for name in ("queued", "start", "end")]
            took = (task["end"] or 0) - task["start"]
            shown.add_row(task["task"], *("" if cell is None else f"{cell:.1f}" for cell in cells), f"{took:.1f}")
        console.print(shown)
    memory = result["idle_memory"]
    console.print(f"Idle: Airflow {memory['airflow_mb']:.0f} MB, the lab {memory['lab_mb']:.0f} MB (PSS)")


def main() -> int:
    """Measure, write and show; 0 when every target is met."""
    settings = load_settings()
    lifecycle.up(settings, lambda _: None)
    lab = Lab.load(settings.run)
    airflow = Airflow(settings.run, read_environment(settings.run))
    was_stopped = airflow.start() is not None
    client = lab_client(settings.run)
    wait_for_dags(client)
    paused = client.get(f"dags/{MONITOR}")["is_paused"]
    client.request("PATCH", f"dags/{MONITOR}", {"is_paused": True})
    bench = Bench(settings, lab, client)
    try:
        with lifecycle.alone(settings):
            bench.prepare()
            time.sleep(5)
            memory = idle_memory(lab, airflow)
            for number in range(1, ROUNDS + 1):
                console.print(f"[bold]Round {number} of {ROUNDS}[/]")
                bench.by_hand()
                bench.by_dag()
                bench.by_hand_woken()
            lifecycle.reset(settings, lifecycle.FRESH)
    finally:
        # A new login, since the first one may have run out; where Airflow is gone, its end must not hide the reason.
        with contextlib.suppress(httpx.HTTPError):
            lab_client(settings.run).request("PATCH", f"dags/{MONITOR}", {"is_paused": paused})
        if was_stopped:
            airflow.stop()
    result = summary(bench, memory, lab)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(bench, result)
    return 0 if all(result[name] <= target for name, target in TARGETS.items()) else 1


def wait_for_dags(client: AirflowClient) -> None:
    """Wait until Airflow has read them."""
    wanted = {"bluegreen_checkpoint", "bluegreen_rollback", MONITOR}
    deadline = time.monotonic() + 60
    while not wanted <= {dag["dag_id"] for dag in client.get("dags", limit=100)["dags"]}:
        if time.monotonic() > deadline:
            raise TimeoutError("Airflow does not know the DAGs")
        time.sleep(0.5)


def machine(lab: Lab) -> dict[str, Any]:
    """On what it was measured."""
    return {
        "cores": os.cpu_count(),
        "memory_mb": round(psutil.virtual_memory().total / 2**20),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "postgresql": lab.info["server_version"],
    }


def summary(bench: Bench, memory: dict[str, float], lab: Lab) -> dict[str, Any]:
    """Everything that was measured."""
    script, dag = bench.script.medians(), bench.dag.medians()
    ratios = {key: round(dag[key] / script[key], 2) for key in dag}
    woken = bench.woken.medians()["checkpoint"]
    return {
        **{name: ratios[key] for key, name in MEASURED.items()},
        "targets": TARGETS,
        "ratios": ratios,
        "medians": {"script": script, "dag": dag, "script_woken": {"checkpoint": woken}},
        "checkpoint_ratio_to_woken_script": round(dag["checkpoint"] / woken, 2),
        "rounds": {"script": bench.script.seconds, "dag": bench.dag.seconds, "script_woken": bench.woken.seconds},
        "details": {"script": bench.script.details, "dag": bench.dag.details},
        "idle_memory": memory,
        "machine": machine(lab),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    sys.exit(main())
