"""A handle on the running lab, for tests and the demo."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg

from lab.config import CHECKOUT, LabError
from lab.machine import postmaster_pid
from lab.supervisor import Supervisor


@dataclass(frozen=True)
class Member:
    """One member of the lab, as lab.json has it."""

    name: str
    host: str
    port: int
    rest: str
    ssh_port: int
    data_dir: Path
    patroni_config: Path
    socket_dir: Path
    postgres_log: Path
    patroni_log: Path


@dataclass(frozen=True)
class Lab:
    """The lab that a lab.json describes."""

    info: dict[str, Any]
    nodes: dict[str, Member] = field(default_factory=dict)

    @classmethod
    def load(cls, run: Path | str | None = None) -> Self:
        """Read lab.json in this folder; by default the one that LAB_RUN names, or lab/run.

        Raises:
            LabError: there is no lab.
        """
        folder = Path(run or os.environ.get("LAB_RUN") or CHECKOUT / "lab" / "run")
        try:
            return cls.described(json.loads((folder / "lab.json").read_text()))
        except FileNotFoundError:
            raise LabError(f"There is no {folder}/lab.json: make lab") from None

    @classmethod
    def described(cls, info: dict[str, Any]) -> Self:
        """The lab of such a description."""
        paths = ("data_dir", "patroni_config", "socket_dir", "postgres_log", "patroni_log")
        nodes = {one["name"]: Member(**{**one, **{key: Path(one[key]) for key in paths}}) for one in info["nodes"]}
        return cls(info, nodes)

    @property
    def name(self) -> str:
        """The cluster's name, Patroni's scope."""
        return self.info["name"]

    @property
    def names(self) -> list[str]:
        """The members' names."""
        return list(self.nodes)

    @property
    def supervisor(self) -> Supervisor:
        """The process manager."""
        return Supervisor(Path(self.info["supervisor_socket"]))

    @property
    def tls(self) -> dict[str, str]:
        """What a client needs besides a user and a password; empty in a lab without TLS."""
        return self.info.get("tls") or {}

    @cached_property
    def http(self) -> httpx.Client:
        """A client of the members' REST APIs; each request has a connection of its own, since members come and go."""
        options: dict[str, Any] = {"trust_env": False, "limits": httpx.Limits(max_keepalive_connections=0)}
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls["patroni_ca"])
            context.load_cert_chain(self.tls["certificate"], self.tls["key"])
            options |= {"verify": context, "auth": (self.tls["user"], self.tls["password"])}
        return httpx.Client(**options)

    @property
    def libpq(self) -> dict[str, str]:
        """The TLS settings of a connection to PostgreSQL."""
        return {"sslmode": "verify-full", "sslrootcert": self.tls["postgres_ca"]} if self.tls else {}

    def connect(
        self, node: str, database: str = "app", user: str | None = None, **options: Any
    ) -> psycopg.Connection[Any]:
        """A connection to this member, autocommit, as this user of the lab (default: the superuser)."""
        member = self.nodes[node]
        user = user or self.info["superuser"]
        options = {"connect_timeout": 3, "autocommit": True, "application_name": "lab", **self.libpq, **options}
        return psycopg.connect(
            host=member.host,
            port=member.port,
            dbname=database,
            user=user,
            password=self.info["users"][user],
            **options,
        )

    def sql(
        self, node: str, query: str, parameters: Any = None, database: str = "app", user: str | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of one statement on this member; an empty list where it returns none."""
        with self.connect(node, database, user) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def value(self, node: str, query: str, parameters: Any = None, **options: Any) -> Any:
        """The only value of the only row."""
        ((found,),) = self.sql(node, query, parameters, **options)
        return found

    def cluster(self) -> dict[str, Any]:
        """Patroni's GET /cluster, from the first member that answers; no members where none does."""
        for member in self.nodes.values():
            try:
                answer = self.http.get(f"{member.rest}/cluster", timeout=3)
                if answer.status_code == 200 and answer.json().get("members"):
                    return answer.json()
            except httpx.HTTPError:
                continue
        return {"members": [], "scope": self.name}

    def patroni(self, node: str) -> dict[str, Any] | None:
        """Patroni's GET /patroni of this member, or None where it does not answer."""
        try:
            return self.http.get(f"{self.nodes[node].rest}/patroni", timeout=3).json()
        except (httpx.HTTPError, ValueError):
            return None

    def leader(self) -> str | None:
        """The member that answers as the leader, or None."""
        for name, member in self.nodes.items():
            try:
                if self.http.get(f"{member.rest}/primary", timeout=3).status_code == 200:
                    return name
            except httpx.HTTPError:
                continue
        return None

    def start_patroni(self, *names: str) -> None:
        """Start Patroni on these members; return at once."""
        self.supervisor.start(*(f"patroni-{name}" for name in names))

    def stop_patroni(self, *names: str) -> None:
        """Stop Patroni, and with it PostgreSQL, on these members side by side."""
        self.supervisor.stop(*(f"patroni-{name}" for name in names))

    def kill_patroni(self, *names: str) -> None:
        """SIGKILL to Patroni alone: PostgreSQL stays."""
        self.supervisor.kill(*(f"patroni-{name}" for name in names))

    def kill_postgres(self, name: str) -> None:
        """SIGKILL to the postmaster: a crash, which Patroni notices."""
        pid = postmaster_pid(self.nodes[name].data_dir)
        if pid is None:
            raise LabError(f"PostgreSQL does not run on {name}")
        os.kill(pid, signal.SIGKILL)

    def postmaster(self, name: str) -> int | None:
        """The pid of PostgreSQL on this member, or None."""
        return postmaster_pid(self.nodes[name].data_dir)

    def ssh(self, name: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command on this member over SSH, as a client would."""
        return subprocess.run(
            ["ssh", "-F", self.info["ssh_config"], name, command],
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def there(self, name: str, text: str) -> str:
        """A text with this member's paths as its node knows them."""
        del name
        return text

    def patronictl(self, *arguments: str, node: str = "n1", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run patronictl, with this member's configuration."""
        return subprocess.run(
            [self.info["patronictl"], "-c", str(self.nodes[node].patroni_config), *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=60,
        )

    def trouble(self) -> list[str]:
        """What keeps the lab from being healthy, one sentence each; empty when all is well."""
        members = {one["name"]: one for one in self.cluster()["members"]}
        found = [f"{name} is not in the cluster" for name in self.nodes if name not in members]
        leaders = [one["name"] for one in members.values() if one["role"] in ("leader", "master", "primary")]
        if len(leaders) != 1:
            return [*found, f"leaders: {', '.join(leaders) or 'none'}"]
        if members[leaders[0]].get("timeline") is None:
            return [*found, f"{leaders[0]} has not published its timeline"]
        for name, one in members.items():
            good = ("running",) if name in leaders else ("streaming", "running")
            if one["state"] not in good:
                found.append(f"{name} is {one['state']}")
            elif one.get("timeline") != members[leaders[0]].get("timeline"):
                found.append(f"{name} is on timeline {one.get('timeline')}")
        return (
            found or self._not_streaming(leaders[0]) or self._not_published(leaders[0], members[leaders[0]]["timeline"])
        )

    def _not_published(self, leader: str, published: int) -> list[str]:
        """That Patroni still publishes the timeline from before a start."""
        query = "select ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
        try:
            timeline = self.value(leader, query, database="postgres")
        except psycopg.Error as error:
            return [f"{leader} does not answer: {error}"]
        return [] if published == timeline else [f"{leader} has published timeline {published}, and is on {timeline}"]

    def _not_streaming(self, leader: str) -> list[str]:
        """Members that Patroni calls well and that the leader does not send to: the leader knows better."""
        query = "select application_name from pg_stat_replication where state = 'streaming'"
        try:
            sent = {name for (name,) in self.sql(leader, query, database="postgres")}
        except psycopg.Error as error:
            return [f"{leader} does not answer: {error}"]
        return [f"{name} does not stream" for name in self.nodes if name not in sent | {leader}]

    def wait_healthy(self, timeout: float = 60) -> float:
        """Wait until there is one leader and all others stream from it; return the seconds it took.

        Raises:
            LabError: with what is still wrong.
        """
        start = time.monotonic()
        while trouble := self.trouble():
            if time.monotonic() - start > timeout:
                raise LabError(f"After {timeout:.0f} s: {'; '.join(trouble)}. {self.where_to_look()}")
            time.sleep(0.2)
        return time.monotonic() - start

    def where_to_look(self) -> str:
        """Where a person finds what is wrong, and what helps."""
        return f"Logs are in {self.info['directory']}/log; `make lab-reset` puts the lab back to its first day"

    def wait_leader(self, timeout: float = 60) -> str:
        """Wait until a member answers as the leader; return its name.

        Raises:
            LabError: there is none in time, or Patroni does not run anywhere.
        """
        deadline = time.monotonic() + timeout
        while not (found := self.leader()):
            programs = self.supervisor.programs()
            running = any(programs[f"patroni-{name}"].is_up for name in self.nodes)
            if not running or time.monotonic() > deadline:
                why = f"No leader after {timeout:.0f} s" if running else "Patroni ended on every member"
                raise LabError(f"{why}; its logs are {self.info['directory']}/log/patroni-*.log")
            time.sleep(0.1)
        return found
