"""Check everything that a checkpoint, and a rollback to it, will need.

Nothing is changed but the lock, and a hold that an earlier run has left unfinished.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bluegreen.checkpoint import Checkpoint, Phase, check_label, new_id
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey, require_same
from bluegreen.hooks.dcs import list_members
from bluegreen.hooks.journals import remove_journals
from bluegreen.hooks.lag import check_delay
from bluegreen.hooks.node import DataDirectory, NodeHook
from bluegreen.hooks.postgres import MemberSql, Row
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import CHANGED_KEY, BluegreenOperator, is_finished, lock_cluster, paused_dags
from bluegreen.operators.release import find, release
from bluegreen.recovery.node_config import NodeConfig
from bluegreen.recovery.versions import HoldMechanism, ServerVersion
from bluegreen.topology import (
    Member,
    Topology,
    check_standby,
    check_streams,
    choose_standby,
    failover_candidates,
    topology_synchronous,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

DELAY_SECONDS = 5
FOLLOWS_SECONDS = 60
SETTLES_SECONDS = 25
UNFINISHED = frozenset({Phase.HOLDING, Phase.RELEASING})
MISSED = {
    "rollback": "a rollback would wait in the queue and never start",
    "resume": "a resume would wait in the queue and never start",
    "monitor": "nobody watches the disks and the proof of this checkpoint, and auto_release does not happen",
}
"""What is missed while a DAG is paused."""

NEEDED_PROGRAMS = ("pg_ctl", "pg_controldata", "psql")


class CheckpointPreflightOperator(BluegreenOperator):
    """Lock the cluster and check that a standby can be held, and rolled back to.

    A hold that an earlier run left unfinished, since it could not be undone then, is released first.

    Returns ``checkpoint_id``, ``standby``, ``leader``, ``checks`` (one line each) and ``warnings``.

    Example::

        check = CheckpointPreflightOperator(task_id="check", cluster="orders", checkpoint_label="release 1.2")

    :param checkpoint_label: a text for people, at most 200 printable characters (templated).
    :param standby: which member to hold; None or empty lets the project choose (templated).
    :param break_lock: the run whose lock is broken (templated).
    :raises RefusedError: with the reason, when a checkpoint would not be safe.
    """

    template_fields: Sequence[str] = (*BluegreenOperator.template_fields, "checkpoint_label", "standby", "break_lock")

    def __init__(
        self, *, checkpoint_label: Any = "", standby: Any = None, break_lock: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(multiple_outputs=True, **kwargs)
        self.checkpoint_label = checkpoint_label
        self.standby = standby
        self.break_lock = break_lock

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Run the checks in the order in which a person would want to hear of them."""
        label = check_label(self.checkpoint_label or "")
        checkpoint_id = new_id(context["dag_run"].run_after, context["dag_run"].run_id)
        warnings: list[str] = []
        survey = hook.survey(patroni_must_answer=True)
        existing = survey.checkpoint
        own = existing is None or existing.id == checkpoint_id
        if existing and not own and existing.phase in UNFINISHED and is_finished(context, existing.taken_by):
            warnings = self._clear_away(hook, survey, existing, context)
            survey = hook.survey(patroni_must_answer=True)
            existing = survey.checkpoint
        topology = survey.topology
        if topology is None:
            raise FailedForNowError("no Patroni answers")
        topology = _settled(hook, topology)
        checks = _Checks()
        leader = _leader(topology, checks)
        if existing is not None and existing.id != checkpoint_id:
            raise RefusedError(
                f"{hook.cluster.name} already holds checkpoint {existing.id} ({existing.phase.value}, label "
                f"{existing.label!r}, on {existing.held} since {existing.taken_at or existing.taken_by.since}); "
                "expected none. Run bluegreen_resume or bluegreen_rollback for it first"
            )
        if existing is not None and existing.phase is Phase.HELD:
            raise RefusedError(f"checkpoint {existing.id} was taken by this very run, on {existing.held}, and is held")
        checks.passed("no checkpoint is held")
        standby = _standby(topology, self.standby or None)
        checks.passed(
            f"{standby.name} can be held: it streams, on timeline {standby.timeline}, not the only synchronous"
        )
        check_streams(topology)
        members = [member.name for member in topology.members]
        survey.require(members)
        # Through it the hold takes effect and ends; without it a hold would stay.
        hook.patroni.require_access(standby.api_url)
        hook.require_access(topology, members)
        checks.passed("Patroni's REST API allows changes on every member")
        _nodes(hook, survey, topology, standby.name, checks)
        warnings += _without_patroni(hook, members, checks)
        warnings += self._lock(hook, context, survey, standby.name, members)
        checks.passed("no other run works on this cluster; locked")
        warnings += self._servers(hook, survey, topology, leader, standby, checks)
        if not failover_candidates(topology, standby.name):
            warnings.append(
                f"no failover candidate is left while {standby.name} is held: if {leader.name} fails, the cluster "
                "has no leader until a person acts"
            )
        warnings += _paused(context)
        return {
            "checkpoint_id": checkpoint_id,
            "label": label,
            "standby": standby.name,
            "leader": leader.name,
            "checks": checks.lines,
            "warnings": warnings,
        }

    def _lock(self, hook: ClusterHook, context: Context, survey: Survey, held: str, members: list[str]) -> list[str]:
        return lock_cluster(
            hook, context, "checkpoint", survey, held=held, members=members, breaks=self.break_lock or None
        )

    def _clear_away(self, hook: ClusterHook, survey: Survey, unfinished: Checkpoint, context: Context) -> list[str]:
        """Release what an earlier run held and could not undo: it never became a checkpoint, or was given up."""
        warnings = self._lock(hook, context, survey, unfinished.held, list(unfinished.members))
        warnings += release(hook, survey, find(hook, survey, None))
        remove_journals(hook, unfinished, set(unfinished.members))
        released = (
            f"the hold on {unfinished.held} that {unfinished.taken_by} had left unfinished ({unfinished.id}) was "
            "released first"
        )
        # What is refused after it has changed something.
        context["ti"].xcom_push(key=CHANGED_KEY, value=released)
        wait_until(partial(_follows, hook, unfinished.held), seconds=FOLLOWS_SECONDS, every_seconds=1)
        return [*warnings, released]

    def _servers(
        self,
        hook: ClusterHook,
        survey: Survey,
        topology: Topology,
        leader: Member,
        standby: Member,
        checks: _Checks,
    ) -> list[str]:
        primary = hook.sql(leader.name, leader.host, leader.port)
        identity = primary.row("identity")
        version = ServerVersion(int(identity["server_version_num"]))
        if identity["in_recovery"] is not False:
            raise FailedForNowError(f"{primary.where}: Patroni calls it the leader, but it is in recovery")
        if identity["timeline"] != leader.timeline:
            raise FailedForNowError(
                f"{primary.where}: Patroni says that it is on timeline {leader.timeline}, PostgreSQL that it is on "
                f"{identity['timeline']}; expected the same"
            )
        _no_airflow(hook, leader, checks)
        data = hook.on_each(
            [member.name for member in topology.members],
            lambda node: node.data_directory(survey.states[node.member].config),
        )
        identifiers = {name: found.control("Database system identifier") for name, found in data.items()}
        require_same(identifiers, str(identity["system_identifier"]), "system identifier of the data directories")
        checks.passed(f"every data directory is of the cluster {identity['system_identifier']} that SQL reports")
        _programs(data, version, checks)
        replication = hook.replication(topology)
        _lag(hook, replication, standby, checks)
        _synchronous(replication, topology, standby)
        _delay(hook, standby, checks)
        _disks(hook, data, [leader.name, standby.name], checks)
        settings = {row["name"]: row["value"] for row in primary.rows("settings")}
        config = survey.states[standby.name].config
        warnings = _settings(settings, config, checks)
        _local_login(primary, config, checks)
        held = hook.sql(standby.name, standby.host, standby.port)
        if not held.row("identity")["in_recovery"]:
            raise FailedForNowError(f"{standby.name} says that it is not in recovery; expected a standby")
        _server_files(hook.nodes[standby.name], held, checks)
        if version.hold_mechanism is HoldMechanism.REPLAY_PAUSE:
            _pause_rights(held)
        return warnings + _exposure(primary.row("exposure"), primary.rows("replication"), topology)


def _pause_rights(held: MemberSql) -> None:
    may = held.row("pause_rights")
    if lacking := [verb for verb in ("pause", "resume") if may[verb] is not True]:
        raise RefusedError(
            f"{held.where}: the role may not {' and '.join(lacking)} the replay, which is how the hold begins and ends "
            "on this version; expected both. Apply the grants.sql of this version, below include/sql/"
        )


def _paused(context: Context) -> list[str]:
    try:
        paused = paused_dags(context, MISSED)
    except FailedForNowError as error:
        return [str(error)]
    return [f"{name} is paused in Airflow: {MISSED[name.removeprefix('bluegreen_')]}; unpause it" for name in paused]


def _follows(hook: ClusterHook, standby: str) -> None:
    topology = hook.patroni.topology()
    member, leader = topology.member(standby), topology.leader
    if member.timeline != leader.timeline:
        raise FailedForNowError(
            f"{standby}, whose unfinished hold was released, is on timeline {member.timeline}; the leader "
            f"{leader.name} on {leader.timeline}"
        )


def _settled(hook: ClusterHook, topology: Topology) -> Topology:
    """Return the topology in which all that run are on one timeline, or the last one after two turns of Patroni.

    Each member reports its own once in a turn: after a promotion they differ for a moment.
    """

    def on_one_timeline() -> Topology:
        nonlocal topology
        running = [member for member in topology.members if member.is_running]
        if len({member.timeline for member in running}) > 1:
            found = ", ".join(f"{member.name} on {member.timeline}" for member in running)
            topology = hook.patroni.topology()
            raise FailedForNowError(f"found timelines: {found}; expected one")
        return topology

    try:
        return wait_until(on_one_timeline, seconds=SETTLES_SECONDS, every_seconds=1)
    except FailedForNowError:
        return topology


class _Checks:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def passed(self, line: str) -> None:
        self.lines.append(line)


def _leader(topology: Topology, checks: _Checks) -> Member:
    if topology.paused:
        raise RefusedError(
            "the cluster is in maintenance mode, where Patroni does not keep PostgreSQL in order; "
            "expected it off. Run `patronictl resume`, then try again"
        )
    leader = topology.leader
    if leader.role == "standby_leader":
        raise RefusedError("this is a standby cluster, whose leader takes no writes; expected a primary cluster")
    checks.passed(f"one leader, running: {leader.name} on timeline {leader.timeline}")
    checks.passed("not in maintenance mode")
    return leader


def _standby(topology: Topology, wanted: str | None) -> Member:
    if wanted is None:
        return choose_standby(topology)
    if not isinstance(wanted, str):
        raise RefusedError(f"found {str(wanted)[:60]!r} as standby; expected a member's name, or nothing")
    return check_standby(topology, wanted)


def _no_airflow(hook: ClusterHook, leader: Member, checks: _Checks) -> None:
    if hook.cluster.airflow_database:
        return
    if found := hook.airflow_databases(leader):
        raise RefusedError(
            f"{hook.cluster.name} holds the metadata database of an Airflow ({', '.join(found)}), and a rollback stops "
            "the cluster under it; expected it elsewhere. Move it; where it is another Airflow's that may be stopped, "
            "set airflow_database: true in the registry"
        )
    checks.passed("no Airflow has its metadata database in this cluster")


def _without_patroni(hook: ClusterHook, members: list[str], checks: _Checks) -> list[str]:
    found = hook.members_without_patroni()
    checks.passed(f"{', '.join(found)} can be found over SSH while every Patroni is stopped")
    if len(found) > 1 or len(members) == 1:
        return []
    return [
        f"while every Patroni is stopped, only {found[0]} can be found by the hosts in the registry's patroni:; if it "
        "is down then, nobody finds the checkpoint. Name more members there"
    ]


def _nodes(hook: ClusterHook, survey: Survey, topology: Topology, standby: str, checks: _Checks) -> None:
    for name, state in sorted(survey.states.items()):
        where = f"{hook.nodes[name].where}: {hook.nodes[name].config_path}"
        if state.aside or state.original is not None or state.saved:
            raise RefusedError(
                f"{where}: found files that an earlier rollback left (.bluegreen-*); expected none. "
                "Finish that rollback, or remove them when the cluster is certainly in order"
            )
        if topology.scope and state.config.scope != topology.scope:
            raise RefusedError(f"{where}: scope is {state.config.scope!r}; expected {topology.scope!r}")
        if not state.writable:
            raise RefusedError(
                f"{where}: its folder cannot be written by {hook.cluster.node.os_user}; expected that it can, "
                "since hold, journal and lock are files there. Give that user the folder"
            )

    def status(node: NodeHook) -> None:
        found = node.service_status()
        if not found.running:
            raise RefusedError(
                f"{node.where}: node.status says that Patroni does not run ({found.text}), but it answers; "
                "the registry's start, stop and status commands are not those of this node"
            )
        node.require_service_rights()
        if node.member == standby:
            _patronictl(node, survey.states[standby].config.scope, topology)

    hook.on_each([member.name for member in topology.members], status)
    checks.passed("SSH, sudo, Patroni's configuration and its service are reachable on every member")
    checks.passed(f"patronictl sees the cluster on {standby}, where a rollback removes it from the DCS")


def _patronictl(node: NodeHook, scope: str, topology: Topology) -> None:
    """Have ``patronictl`` do something harmless now: after a promotion it is too late to find it broken.

    What it lists comes from the DCS over SSH, a second witness of who the members are: one that ``GET /cluster`` left
    out would go on with the discarded data after a rollback.
    """
    listing = list_members(node, node.config_path, scope)
    listed = listing.members
    if listed is None or node.member not in listed:
        raise FailedForNowError(
            f"{node.where}: {listing.call}; expected the cluster's members, since a rollback needs it to remove the "
            f"cluster from the DCS. Repair it; it said: {listing.said}"
        )
    same = {member.name for member in topology.members} == set(listed) and all(
        listed[member.name] in (member.host, f"{member.host}:{member.port}") for member in topology.members
    )
    if not same:
        named = ", ".join(f"{member.name} ({member.host}:{member.port})" for member in topology.members)
        raise FailedForNowError(
            f"Patroni's GET /cluster names the members {named}, and patronictl on {node.where} "
            + ", ".join(f"{name} ({host})" for name, host in sorted(listed.items()))
            + "; expected the same"
        )


def _programs(data: dict[str, DataDirectory], version: ServerVersion, checks: _Checks) -> None:
    for name, found in sorted(data.items()):
        lacking = [program for program in (*NEEDED_PROGRAMS, version.waldump) if program not in found.programs]
        if lacking:
            raise RefusedError(
                f"{name}: {', '.join(lacking)} not found in {found.bin_dir!r}; expected the server's programs there. "
                "Set postgresql.bin_dir in Patroni's configuration"
            )
    checks.passed(f"PostgreSQL {version.major:g} and its programs on every member")


def _lag(hook: ClusterHook, replication: list[Row], standby: Member, checks: _Checks) -> None:
    rows = [row for row in replication if row["application_name"] == standby.name]
    if len(rows) != 1 or rows[0]["state"] != "streaming":
        found = ", ".join(str(row["state"]) for row in rows) or "no connection"
        raise RefusedError(f"{standby.name} does not stream (found: {found}); expected one streaming connection")
    lag = rows[0]["replay_lag_bytes"]
    if lag is None:
        raise FailedForNowError(f"the lag of {standby.name} is not known; expected a number of bytes")
    limit = hook.cluster.limits.lag_bytes
    if int(lag) > limit:
        raise RefusedError(
            f"{standby.name} lags by {int(lag)} bytes, the limit is {limit} (limits.lag_bytes); "
            "wait until it has caught up"
        )
    checks.passed(f"{standby.name} lags by {int(lag)} bytes, within {limit}")


def _synchronous(replication: list[Row], topology: Topology, standby: Member) -> None:
    """Refuse a standby that commits wait for although Patroni does not say so: no tag takes it out (hazard H8)."""
    waited_for = any(
        row["application_name"] == standby.name and row["sync_state"] in {"sync", "quorum"} for row in replication
    )
    if waited_for and not topology_synchronous(topology):
        raise RefusedError(
            f"commits wait for {standby.name} by a synchronous_standby_names that Patroni does not manage, and could "
            "hang while it is held; expected a standby that nobody waits for. Name another one as standby, or leave it "
            "to Patroni's synchronous_mode"
        )


def _delay(hook: ClusterHook, standby: Member, checks: _Checks) -> None:
    limit = hook.cluster.limits.lag_seconds
    sql = hook.sql(standby.name, standby.host, standby.port)
    try:
        wait_until(partial(check_delay, sql, limit), seconds=DELAY_SECONDS)
    except FailedForNowError as error:
        raise RefusedError(f"{error}; wait until it has caught up, or choose another standby") from None
    checks.passed(f"what {standby.name} shows is at most {limit:g} s old")


def _disks(hook: ClusterHook, data: dict[str, DataDirectory], members: list[str], checks: _Checks) -> None:
    limit = hook.cluster.limits.disk_free_percent
    for name in members:
        for which in ("data", "wal"):
            device, size, free = data[name].disk(which)
            percent = 100 * free / size if size else 0.0
            if percent < limit:
                raise RefusedError(
                    f"{name}: {device} ({which} directory) has {percent:.1f} % free, the limit is {limit:g} % "
                    "(limits.disk_free_percent). A hold lets WAL pile up: make room first"
                )
    checks.passed(f"at least {limit:g} % free on the disks of {' and '.join(members)}")


def _settings(settings: dict[str, str], standby: NodeConfig, checks: _Checks) -> list[str]:
    warnings = []
    if settings.get("wal_level") not in {"replica", "logical", "hot_standby"}:
        raise RefusedError(f"wal_level is {settings.get('wal_level')!r}; expected replica or logical")
    checks.passed(f"wal_level is {settings['wal_level']}")
    if "on" in (settings.get("data_checksums"), settings.get("wal_log_hints")):
        checks.passed("pg_rewind will be possible (data checksums or wal_log_hints)")
    else:
        checks.passed("pg_rewind will not be possible")
        warnings.append(
            "neither data checksums nor wal_log_hints are on: after a rollback the other members are cloned afresh, "
            "which takes as long as a copy of the data"
        )
    kept = settings.get("max_slot_wal_keep_size", "-1")
    if kept not in {"-1", ""}:
        warnings.append(
            f"max_slot_wal_keep_size is {kept}: the slot of {standby.member} can be lost when more WAL is kept back"
        )
    if slots := settings.get("synchronized_standby_slots"):
        warnings.append(
            f"synchronized_standby_slots is {slots}: a subscriber of a failover slot can keep the leader from stopping "
            "once its replicas have stopped, and the rollback is put back then; stop such subscribers before a rollback"
        )
    if not settings.get("unix_socket_directories"):
        raise RefusedError(
            "unix_socket_directories is empty or hidden from this role; expected a folder, since the recovered server "
            "is first opened over its local socket only. Apply include/sql/grants.sql, or set the parameter"
        )
    return warnings


def _local_login(primary: MemberSql, standby: NodeConfig, checks: _Checks) -> None:
    """Prove that Patroni's superuser can log in: over the local socket it tells later how the recovery ended."""
    row = primary.row("local_login", role=standby.superuser)
    if row["superuser"] is not True or row["open_database"] is not True:
        lacks = "database postgres that may be entered" if row["superuser"] is True else "superuser who may log in"
        raise RefusedError(
            f"there is no {lacks}, expected role {standby.superuser!r} and database 'postgres': the recovered server "
            "is asked through them alone. Patroni's superuser is read from its YAML, "
            "postgresql.authentication.superuser.username, else it is postgres"
        )
    checks.passed(f"the superuser {standby.superuser} can ask the recovered server in the database postgres")


def _server_files(node: NodeHook, held: MemberSql, checks: _Checks) -> None:
    """Prove that a recovery can replace the held server's files, and put them back: then nobody serves."""
    found = {row["name"]: str(row["value"] or "") for row in held.rows("settings")}
    files = {name: found.get(name, "") for name in ("hba_file", "ident_file")}
    for name, path in files.items():
        if not path.startswith("/"):
            raise RefusedError(
                f"{name} of {node.member} is {path!r}; expected a path. Apply include/sql/grants.sql, so that the SQL "
                "role may see it"
            )
    node.require_replaceable(files)
    checks.passed(f"the recovery can replace {' and '.join(files.values())} on {node.member}")


def _exposure(row: Row, replication: list[Row], topology: Topology) -> list[str]:
    warnings = []
    counted = {
        "unlogged_tables": "unlogged table(s): a rollback leaves them empty",
        "logical_slots": "logical slot(s): their consumers will have seen what a rollback discards, and lose the slot",
        "subscriptions": "subscription(s): a rollback loses what they have received since the mark, and their "
        "publishers do not send it again: refresh them with a fresh copy afterwards",
        "prepared_transactions": "prepared transaction(s): they come back as they were at the mark",
    }
    for column, text in counted.items():
        if row[column] is None:
            warnings.append(f"{column} could not be counted")
        elif int(row[column]):
            warnings.append(f"{row[column]} {text}")
    names = {member.name for member in topology.members}
    strangers = sorted({str(line["application_name"]) for line in replication} - names)
    if strangers:
        warnings.append(
            f"also reading WAL from the leader, and not a member: {', '.join(strangers)} (a standby cluster, a backup, "
            "a subscriber); after a rollback it holds a history that is gone"
        )
    cascading = sorted(member.name for member in topology.members if member.tags.get("replicatefrom"))
    if cascading:
        warnings.append(f"cascading replica(s): {', '.join(cascading)}")
    return warnings
