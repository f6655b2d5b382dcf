"""The steps that the tests are told in: take a checkpoint, deploy something bad, roll back."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from lab.client import AirflowClient
from lab.cluster import Lab
from ruamel.yaml import YAML
from tests.cluster.verdict import Contents, Picture, contents, dcs

JOURNAL = ".bluegreen-journal"
LOCK = ".bluegreen-lock"
DAG_SECONDS = 400

SEED = """
create table orders (id int primary key, customer text not null, total numeric not null);
insert into orders select i, 'customer ' || i % 100, i * 1.25 from generate_series(1, 1000) i;
create table payments (id int primary key, order_id int references orders, paid timestamptz);
insert into payments select i, i, timestamptz '2026-01-01' + i * interval '1 minute' from generate_series(1, 1000) i;
"""
GOOD_MIGRATION = """
alter table orders add column currency text not null default 'EUR';
update orders set total = round(total, 1);
create table shipments (id int primary key);
insert into shipments select generate_series(1, 50);
"""
BAD_MIGRATION = """
update orders set total = 0, customer = 'nobody';
drop table payments;
create table debris as select generate_series(1, 20000) as i;
"""


def seed(lab: Lab) -> None:
    """The tables that the tests work on, and a second database."""
    leader = lab.wait_leader(30)
    lab.sql(leader, SEED, user="release")
    lab.sql(leader, "create database reporting owner release", database="postgres")
    lab.sql(leader, "create table figures as select generate_series(1, 100) as n", database="reporting", user="release")
    rows = contents(lab, leader)
    wait_for("the seeded rows on every member", lambda: all(has(lab, name, rows) for name in lab.names))


def has(lab: Lab, name: str, rows: Contents) -> bool:
    """Whether this member has exactly these rows now; one that does not answer, or is changing, has not."""
    try:
        return contents(lab, name) == rows
    except psycopg.Error:
        return False


def change(registry: Path, cluster: str, **values: Any) -> None:
    """Edit a cluster of the registry; mappings such as `limits` are merged."""
    yaml = YAML()
    data = yaml.load(registry)
    entry = data["clusters"].setdefault(cluster, {})
    for name, value in values.items():
        if isinstance(value, dict):
            entry.setdefault(name, {}).update(value)
        else:
            entry[name] = value
    new = registry.with_suffix(".new")
    yaml.dump(data, new)
    new.chmod(0o644)
    new.replace(registry)


@contextmanager
def changed(registry: Path, cluster: str, **values: Any) -> Iterator[None]:
    """Edit a cluster of the registry for as long as this lasts."""
    before = registry.read_bytes()
    change(registry, cluster, **values)
    try:
        yield
    finally:
        registry.write_bytes(before)


@contextmanager
def of_root(path: Path) -> Iterator[None]:
    """A file that belongs to root for a while, and that others may still read."""
    owner = path.stat()
    os.chown(path, 0, 0)
    path.chmod(0o644)
    try:
        yield
    finally:
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(owner.st_mode)


def wait_for(what: str, look: Callable[[], Any], seconds: float = 60, every: float = 0.1) -> Any:
    """Call `look` until its answer is true; fail with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)
    return found


@contextmanager
def watching(look: Callable[[], None], every: float) -> Iterator[list[int]]:
    """Call `look` all the time in a thread; the list counts the looks. What it raises is raised at the end.

    :param every: seconds between two looks.
    """
    end, looks = threading.Event(), [0]
    raised: list[Exception] = []

    def watch() -> None:
        try:
            while not end.is_set():
                look()
                looks[0] += 1
                end.wait(every)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        end.set()
        thread.join(20)
    if raised:
        raise raised[0]


@dataclass
class Scene:
    """A fresh cluster, and what can be done with it."""

    lab: Lab
    airflow: AirflowClient
    fresh: Picture
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> Contents:
        """What every member of the fresh cluster has."""
        found = next(iter(self.fresh.members.values())).contents
        assert found
        return found

    @property
    def timeline(self) -> int:
        """The timeline of the fresh cluster."""
        found = self.fresh.members[str(self.fresh.leader)].timeline
        assert found
        return found

    @property
    def leader(self) -> str:
        """The member that leads now."""
        return self.lab.wait_leader(60)

    @property
    def held(self) -> str:
        """The held member."""
        return str(self.record["held"])

    @property
    def xid(self) -> int:
        """The mark's transaction id."""
        return int(self.record["xid"])

    @property
    def third(self) -> str:
        """The replica that is not held."""
        (name,) = set(self.lab.names) - {self.held, self.leader}
        return name

    def who(self, role: str) -> str:
        """The member that is `held`, or was `leader` or `third` when the cluster was fresh."""
        leader = str(self.fresh.leader)
        (third,) = set(self.lab.names) - {self.held, leader}
        return {"held": self.held, "leader": leader, "third": third}[role]

    def run(self, dag: str, **conf: Any) -> tuple[str, dict[str, Any]]:
        """Run one of the DAGs to its end; return its state and report."""
        return self.airflow.run(f"bluegreen_{dag}", {"cluster": self.lab.name, **conf}, seconds=DAG_SECONDS)

    def must(self, dag: str, **conf: Any) -> dict[str, Any]:
        """Run one of the DAGs, which must succeed; return its report."""
        run_id = self.trigger(dag, **conf)
        return self.finish(dag, run_id)

    def trigger(self, dag: str, **conf: Any) -> str:
        """Start one of the DAGs."""
        return self.airflow.trigger(f"bluegreen_{dag}", {"cluster": self.lab.name, **conf})

    def finish(self, dag: str, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run, which must succeed."""
        state = self.airflow.wait(f"bluegreen_{dag}", run_id, seconds=DAG_SECONDS)
        report = self.airflow.xcom(f"bluegreen_{dag}", run_id, "report") or {}
        assert state == "success", (
            f"{dag} {state}: {report.get('message')} [{self.airflow.summary(f'bluegreen_{dag}', run_id)}]"
        )
        return report

    def task(self, dag: str, run_id: str, task_id: str) -> str:
        """The state in which a task of a run has ended; empty while it has not."""
        states = {task["task_id"]: task["state"] for task in self.airflow.tasks(f"bluegreen_{dag}", run_id)}
        state = str(states.get(task_id))
        return state if state in ("success", "failed", "skipped", "upstream_failed") else ""

    def is_in(self, dag: str, run_id: str, task_id: str, *states: str) -> bool:
        """Whether a task of a run is in one of these states now."""
        tasks = self.airflow.tasks(f"bluegreen_{dag}", run_id)
        return any(task["task_id"] == task_id and task["state"] in states for task in tasks)

    def clear(self, dag: str, run_id: str, task_id: str) -> None:
        """Clear a task and all that follow, as a person does in the UI."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task_id],
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        answer = self.airflow.request("POST", f"dags/bluegreen_{dag}/clearTaskInstances", body)
        assert answer.status_code == 200, answer.text

    def kill_task(self, dag: str, run_id: str, task_id: str) -> None:
        """SIGKILL to the processes that run a task now, wherever it has come to; its supervisor lives on."""

        def killed() -> int:
            tasks = self.airflow.tasks(f"bluegreen_{dag}", run_id)
            titles = [f"airflow worker -- {task['id']}" for task in tasks if task["task_id"] == task_id]
            count = 0
            for process in psutil.process_iter(["cmdline"]):
                if " ".join(process.info["cmdline"] or []).strip() in titles:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                        count += 1
            return count

        wait_for(f"a process runs {task_id}", killed, seconds=20, every=0.02)

    def refused(self, dag: str, **conf: Any) -> str:
        """Run one of the DAGs, which must be refused; return its sentence."""
        state, report = self.run(dag, **conf)
        assert (state, report.get("result")) == ("failed", "refused"), f"{dag} {state}: {report}"
        return str(report["message"])

    def checkpoint(self, **conf: Any) -> dict[str, Any]:
        """Take a checkpoint."""
        report = self.must("checkpoint", **{"label": "release 1", **conf})
        assert report["result"] == "held"
        self.record = report["checkpoint"]
        return report

    def deploying(self, command: str, checks: list[str]) -> str:
        """Start a deployment, and wait until its checkpoint is taken and its command runs; return its run."""
        run_id = self.trigger("deploy", command=command, checks=checks)
        wait_for("the deployment runs", lambda: self.is_in("deploy", run_id, "deploy", "running"), seconds=200)
        report = self.airflow.xcom("bluegreen_checkpoint", f"{run_id}__bluegreen_checkpoint__0", "report")
        assert report
        self.record = report["checkpoint"]
        return run_id

    def rollback_conf(self, **conf: Any) -> dict[str, Any]:
        """The params of a rollback to the checkpoint that was taken."""
        return {"checkpoint": self.record["id"], "confirm": self.lab.name, "reason": "a test", **conf}

    def rollback(self, **conf: Any) -> dict[str, Any]:
        """Roll back to the checkpoint that was taken."""
        report = self.must("rollback", **self.rollback_conf(**conf))
        assert report["result"] == "rolled_back"
        return report

    def conf(self, operation: str) -> dict[str, Any]:
        """The params of an operation on this scene; a checkpoint holds the member that is the scene's held one."""
        if operation == "checkpoint":
            # who leads now cannot be held
            return {"label": "release 1", "standby": self.held if self.held != self.lab.leader() else None}
        return self.rollback_conf() if operation == "rollback" else {"checkpoint": self.record["id"]}

    def deploy(self, migration: str, *, drop_database: str = "") -> Contents:
        """Run a migration on the leader, as its owner; return what the leader has then."""
        leader = self.leader
        self.lab.sql(leader, migration, user="release")
        if drop_database:
            self.lab.sql(leader, f"drop database {drop_database}", database="postgres")
        return contents(self.lab, leader)

    def deploy_badly(self) -> Contents:
        """Corrupt rows, drop a table and another database."""
        found = self.deploy(BAD_MIGRATION, drop_database="reporting")
        assert found != self.rows
        return found

    def journal(self, member: str | None = None) -> dict[str, Any]:
        """The journal on a member, by default the held one; empty where there is none."""
        try:
            return json.loads(self.journal_path(member or self.held).read_text())
        except FileNotFoundError:
            return {}

    def edit_journals(self, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change what every member's journal says; owner and mode stay."""
        for name in self.lab.names:
            path, found = self.journal_path(name), self.journal(name)
            owner = path.stat()
            path.write_text(json.dumps({**found, **edit(found)}))
            os.chown(path, owner.st_uid, owner.st_gid)

    def journal_path(self, member: str) -> Path:
        """Where a member's journal is."""
        path = self.lab.nodes[member].patroni_config
        return path.with_name(path.name + JOURNAL)

    def locks(self) -> list[str]:
        """The members that are locked."""
        nodes = self.lab.nodes.values()
        return [node.name for node in nodes if node.patroni_config.with_name(node.patroni_config.name + LOCK).exists()]

    def wait_phase(self, *phases: str, seconds: float = 200) -> str:
        """Wait until the held member's journal says one of these phases."""
        wait_for(
            f"the journal says {' or '.join(phases)}",
            lambda: self.journal().get("phase") in phases,
            seconds=seconds,
            every=0.02,
        )
        return str(self.journal()["phase"])

    def kill(self, name: str) -> None:
        """SIGKILL to Patroni and PostgreSQL of a member, which stays down."""
        self.lab.kill_patroni(name)
        self.lab.kill_postgres(name)
        wait_for(f"{name} is down", lambda: self.lab.postmaster(name) is None)

    def keep_little_wal(self) -> None:
        """Have a leader keep 32 MB of WAL for a slot; the fresh cluster counts as one that was told so."""
        lab, leader = self.lab, self.leader
        keeps_little = {"postgresql": {"parameters": {"wal_keep_size": "0", "max_slot_wal_keep_size": "32MB"}}}
        lab.http.patch(f"{lab.nodes[leader].rest}/config", json=keeps_little).raise_for_status()
        keeps = "select setting from pg_settings where name = 'max_slot_wal_keep_size'"
        wait_for("the leader keeps little", lambda: lab.sql(leader, keeps, database="postgres") == [("32",)])
        self.fresh.dcs["config"] = dcs(lab)["config"]

    def stop_receiving(self) -> None:
        """Restart the held standby's server: it has no receiver then while its replay waits (hazard H7)."""
        self.lab.patronictl("restart", self.lab.name, self.held, "--force").check_returncode()

    def outrun_slot(self) -> None:
        """Write on the leader until it has lost the slot of the held standby, which does not receive."""
        lab, leader = self.lab, self.leader

        def is_lost() -> bool:
            for statement in ("select txid_current()", "select pg_switch_wal()", "checkpoint"):
                lab.sql(leader, statement, database="postgres")
            status = "select wal_status from pg_replication_slots where slot_name = %s"
            return lab.sql(leader, status, [self.held], database="postgres") == [("lost",)]

        wait_for("the slot is lost", is_lost)

    def spoil_shutdowns(self) -> tuple[str, str]:
        """The third crashes, and the checkpoint of the leader's shutdown will not end, as on a slow disk."""
        self.kill(self.third)
        pid = self.lab.value(self.leader, "select pid from pg_stat_activity where backend_type = 'checkpointer'")
        self.lab.ssh(self.leader, f"kill -STOP {pid}").check_returncode()
        return self.leader, self.third

    def wait_failover(self, old: str, seconds: float = 90) -> str:
        """Wait until another member leads and takes writes."""

        def leads() -> str | None:
            name = self.lab.leader()
            if not name or name == old:
                return None
            try:
                # Patroni calls it the leader some time before it takes writes.
                return name if self.lab.value(name, "show transaction_read_only") == "off" else None
            except psycopg.Error:
                return None

        return str(wait_for(f"a leader that is not {old} and takes writes", leads, seconds))
