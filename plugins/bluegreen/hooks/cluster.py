"""One cluster as a whole: its topology, nodes and SQL, and the journals and locks on its members."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self, TypeVar

import httpx

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Owner, lock_order, locks_suffice, newest, parse_journal, parse_owner
from bluegreen.clusters import Cluster, load_registry
from bluegreen.exceptions import BluegreenError, FailedForNowError, LockedError, RefusedError, UnreachableError
from bluegreen.hooks.node import NodeHook, NodeState
from bluegreen.hooks.patroni import PatroniHook
from bluegreen.hooks.postgres import MemberSql, Row, cluster_connection
from bluegreen.topology import Member, Topology

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Survey:
    """What a look at every member found.

    :param topology: Patroni's view, or None when no Patroni answers.
    :param states: member to what is on its node.
    :param problems: member to why its node could not be read.
    """

    topology: Topology | None
    states: dict[str, NodeState] = field(default_factory=dict)
    problems: dict[str, BluegreenError] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    def require_no_patroni(self, before: str) -> None:
        """Refuse for now while a Patroni of the cluster answers.

        :param before: what must not be done beside one, for the error's sentence.
        :raises FailedForNowError: when one does; says where.
        """
        if self.topology is not None:
            raise FailedForNowError(
                f"a Patroni of the cluster answers at {self.topology.answered_by}; expected none to run before {before}"
            )

    def require(self, members: Iterable[str]) -> None:
        """Raise the first problem among these members.

        :raises BluegreenError: that problem.
        """
        for member in sorted(members):
            if member in self.problems:
                raise self.problems[member]

    def reached(self, member: str) -> bool:
        """Tell whether a member's node answered over SSH, be it with a refusal or with something that is no answer."""
        problem = self.problems.get(member)
        return member in self.states or (problem is not None and not isinstance(problem, UnreachableError))

    def known_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint; None only where every node was read: a journal that nobody can read may be there.

        :raises BluegreenError: why a node could not be read, where no journal was found on the others.
        """
        if self.checkpoint is None:
            self.require(self.problems)
        return self.checkpoint


class ClusterHook:
    """Everything that a task needs of one cluster; closes what it opened.

    :param name: the cluster's name in the registry.
    :raises RegistryError: when the registry does not know it.
    """

    def __init__(self, name: str) -> None:
        self.cluster: Cluster = load_registry().get(name)
        self.patroni = PatroniHook(self.cluster)
        self.nodes: dict[str, NodeHook] = {}
        self._stack = ExitStack()
        self._sql: dict[tuple[str, str, int], MemberSql] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(self.patroni)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def node(self, member: str, host: str = "") -> NodeHook:
        """Return a member's node.

        :param host: its address, where the registry's ``ssh_hosts`` does not give another one.
        """
        if member not in self.nodes:
            address = self.cluster.ssh_hosts.get(member) or host
            if not address:
                raise RefusedError(f"no address is known for member {member!r}; name it under ssh_hosts")
            self.nodes[member] = self._stack.enter_context(NodeHook(self.cluster, member, address).prepare())
        return self.nodes[member]

    def sql(self, member: str, host: str, port: int) -> MemberSql:
        """Return a member's PostgreSQL."""
        key = (member, host, port)
        if key not in self._sql:
            connection = cluster_connection(self.cluster)
            self._sql[key] = self._stack.enter_context(MemberSql(connection, member, host, port))
        return self._sql[key]

    def sql_of(self, checkpoint: Checkpoint, member: str) -> MemberSql:
        """Return a member's PostgreSQL by the address in the journal."""
        address = checkpoint.members[member]
        return self.sql(member, address.host, address.port)

    def airflow_databases(self, leader: Member) -> list[str]:
        """Return the databases in use on a cluster that are an Airflow's; one that this role may not enter is not seen.

        A rollback stops the cluster: the Airflow that runs it must not have its metadata there.
        """
        connection = cluster_connection(self.cluster)
        found = []
        for row in self.sql(leader.name, leader.host, leader.port).rows("used_databases"):
            name = str(row["database"])
            with MemberSql(connection, leader.name, leader.host, leader.port, read_only=True, database=name) as sql:
                try:
                    if sql.row("airflow_tables")["is_airflow"]:
                        found.append(name)
                except BluegreenError as error:
                    log.info("whether database %r is an Airflow's is not known: %s", name, error)
        return found

    def replication(self, topology: Topology) -> list[Row]:
        """Return who receives WAL, and how far: from the leader, or from a replica that sends it on.

        :raises UnreachableError: when the leader does not answer; who receives from a silent replica is left out.
        :raises RefusedError: when the role may not see their state, which PostgreSQL gives it as null then.
        """
        leader = topology.leader
        rows = self.sql(leader.name, leader.host, leader.port).rows("replication")
        for member in topology.cascading_from:
            try:
                rows += self.sql(member.name, member.host, member.port).rows("replication")
            except UnreachableError as error:
                log.warning("who receives from %s is not known: %s", member.name, error)
        if any(row["state"] is None for row in rows):
            raise RefusedError(
                f"{leader.name}: pg_stat_replication does not show the role the state of its connections; expected the "
                "right pg_read_all_stats. Apply include/sql/grants.sql"
            )
        return rows

    def on_each(self, members: Iterable[str], work: Callable[[NodeHook], T]) -> dict[str, T]:
        """Do the same on several nodes side by side, all to their end.

        :raises BluegreenError: the first problem in order of names, when there was one.
        """
        results, problems = self.try_each(members, work)
        for member in sorted(problems):
            raise problems[member]
        return results

    def try_each(
        self, members: Iterable[str], work: Callable[[NodeHook], T]
    ) -> tuple[dict[str, T], dict[str, BluegreenError]]:
        """Do the same on several nodes side by side; return results and problems by member."""
        results: dict[str, T] = {}
        problems: dict[str, BluegreenError] = {}
        names = sorted(set(members))
        with ThreadPoolExecutor(max_workers=max(len(names), 1)) as pool:
            futures = {name: pool.submit(work, self.nodes[name]) for name in names}
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except BluegreenError as error:
                problems[name] = error
        return results, problems

    def survey(self, *, patroni_must_answer: bool = False, journals_may_differ: bool = False) -> Survey:
        """Look at every member: Patroni's view, then what is on each node, journals included.

        Without any Patroni the hosts of the registry's ``patroni:`` are where it looks, and the
        journal found there names the others.

        :param journals_may_differ: keep what is wrong with them as a problem, on which who needs the checkpoint fails.
        :raises UnreachableError: when nothing of the cluster can be read.
        :raises RefusedError: when a journal is damaged, or they differ.
        """
        topology: Topology | None = None
        try:
            topology = self.patroni.topology()
        except UnreachableError as error:
            if patroni_must_answer:
                raise
            log.warning("%s", error)
        survey = Survey(topology)
        if topology is not None:
            for member in topology.members:
                self.node(member.name, member.host)
        else:
            self._nodes_of_registry()
        self._read(survey, self.nodes)
        try:
            self.find_checkpoint(survey)
        except RefusedError as error:
            if not journals_may_differ:
                raise
            survey.checkpoint, survey.problems["journals"] = None, error
        checkpoint = survey.checkpoint
        if checkpoint is not None:
            missing = [name for name in checkpoint.members if name not in self.nodes]
            for name in missing:
                self.node(name, checkpoint.members[name].ssh_host)
            if missing:
                self._read(survey, missing)
                self.find_checkpoint(survey)
        if topology is None and not survey.states:
            raise UnreachableError(
                f"nothing of cluster {self.cluster.name!r} can be read, neither Patroni nor a node: "
                + "; ".join(str(problem) for problem in survey.problems.values())
            )
        return survey

    def members_without_patroni(self) -> list[str]:
        """Return the members that are found over SSH alone, as a rollback has to while every Patroni is stopped.

        :raises RefusedError: when none is.
        """
        with ClusterHook(self.cluster.name) as other:
            other._nodes_of_registry()
            survey = Survey(None)
            other._read(survey, list(other.nodes))
        if not survey.states:
            raise RefusedError(
                "no member is found over SSH by the hosts in the registry's patroni:, which is all that a rollback has "
                f"while every Patroni is stopped ({'; '.join(map(str, survey.problems.values()))}); expected the "
                "members' own addresses there, with ssh_host_keys, or under ssh_hosts where SSH uses others"
            )
        return sorted(survey.states)

    def require_access(self, topology: Topology, members: Iterable[str]) -> None:
        """Prove that every Patroni that answers also allows changes: a hold that cannot be ended must not begin.

        :param members: whom to ask; a host that is down would only cost its time-out.
        :raises RefusedError: when one does not.
        """
        wanted = set(members)
        for member in (known for known in topology.members if known.name in wanted):
            try:
                self.patroni.require_access(member.api_url)
            except FailedForNowError as error:
                log.warning("whether %s allows changes is not known: %s", member.name, error)

    def _nodes_of_registry(self) -> None:
        by_address = {address: member for member, address in self.cluster.ssh_hosts.items()}
        for url in self.cluster.patroni:
            host = httpx.URL(url).host
            member = by_address.get(host)
            if member is None and "{member}" in self.cluster.node.patroni_config:
                raise RefusedError(
                    f"no Patroni answers, and which member lives on {host} is not known, so node.patroni_config "
                    "cannot be completed; name the members' addresses under ssh_hosts"
                )
            self.node(member or host, host)

    def _read(self, survey: Survey, members: Iterable[str]) -> None:
        states, problems = self.try_each(members, NodeHook.state)
        for found, state in states.items():
            name = state.config.member
            if name != found and survey.topology is not None:
                survey.problems[found] = RefusedError(
                    f"{self.nodes[found].where}: its Patroni configuration is that of member {name!r}; expected "
                    f"{found!r}. Either Patroni's GET /cluster or ssh_hosts gives a member another one's address"
                )
                continue
            if name != found:
                # A node known by its address only; from here on it goes by its member's name.
                try:
                    self.nodes[found].becomes(name)
                except RefusedError as error:
                    survey.problems[found] = error
                    continue
                self.nodes[name] = self.nodes.pop(found)
            survey.states[name] = state
        survey.problems.update(problems)

    def find_checkpoint(self, survey: Survey) -> None:
        """Read the journals among a survey's states; the highest revision is the truth.

        :raises RefusedError: when one is damaged, or they differ.
        """
        journals = [
            parse_journal(state.journal, where=f"{self.nodes[name].where}: {self.nodes[name].config_path}")
            for name, state in survey.states.items()
            if state.journal is not None
        ]
        survey.checkpoint = newest(journals)
        if survey.checkpoint is not None and survey.checkpoint.cluster != self.cluster.name:
            raise RefusedError(
                f"the members of {self.cluster.name!r} hold the journal of a checkpoint of cluster "
                f"{survey.checkpoint.cluster!r}; the registry gives one cluster two names. Keep one"
            )

    def write_journal(self, checkpoint: Checkpoint, *, needed: Iterable[str], optional: Iterable[str] = ()) -> None:
        """Write the journal beside Patroni's configuration on the members.

        :param needed: members on which it must arrive.
        :param optional: members on which a failure is only logged; the highest revision is the truth.
        :raises BluegreenError: when a needed member did not take it.
        """
        must = set(needed)

        def put(node: NodeHook) -> None:
            path = node.config_path + shell.JOURNAL
            node.done(shell.replace_files({path: checkpoint.to_journal()}), "writing the journal")

        _, problems = self.try_each(must | (set(optional) & set(self.nodes)), put)
        for member, problem in sorted(problems.items()):
            if member in must:
                raise problem
            log.warning("the journal was not written on %s: %s", member, problem)

    def lock(
        self,
        owner: Owner,
        *,
        states: Mapping[str, NodeState],
        held: str | None,
        members: Iterable[str],
        hosts_down: Iterable[str] = (),
        breaks: str | None = None,
        is_finished: Callable[[Owner], bool] = lambda _: False,
    ) -> list[str]:
        """Take the cluster's lock for a run, or give back what was taken and refuse.

        A lock that was already seen refuses before any is taken: two runs that are both refused must not
        name each other.

        :param states: what the members' files said when they were last read.
        :param held: the held member; its lock is needed, and a majority of all that are not down.
        :param breaks: the run whose lock a person breaks.
        :param is_finished: tells of a lock's run whether Airflow knows that it has ended.
        :return: warnings.
        :raises LockedError: when another run holds it; says which, who and since when.
        """
        warnings: list[str] = []
        taken: list[str] = []
        unread: list[BluegreenError] = []
        names = list(members)
        content = owner.model_dump_json()

        def removable(other: Owner, member: str) -> str:
            """Say why another's lock may be removed; refuse when it may not."""
            if breaks == other.run_id:
                return f"broke the lock of {other} on {member}"
            if is_finished(other):
                return f"removed the lock that the finished run {other.run_id} left on {member}"
            raise LockedError(
                f"{self.cluster.name} is locked by {other} (found on {member}); expected nobody. Wait for it"
                f", or, when that run is certainly dead, run bluegreen_checkpoint, _resume or _rollback with "
                f"break_lock = {other.run_id}"
            )

        for name, other in self._other_owners(owner, states):
            removable(other, name)
        try:
            for name in lock_order(held, names, hosts_down):
                node = self.nodes[name]
                try:
                    warnings += self._lock_one(node, owner, content, removable)
                except LockedError:
                    raise
                except BluegreenError as error:
                    unread.append(error)
                    continue
                taken.append(name)
            if not locks_suffice(taken, held, names, hosts_down):
                by_hand = ""
                if owner.operation == "resume":
                    by_hand = (
                        ". Where those hosts do not come back, a person lets the standby go on by hand, as "
                        "docs/troubleshooting.md says below 'Airflow is down'"
                    )
                raise LockedError(
                    f"only {len(taken)} of {len(names)} members could be locked; expected the held one and a "
                    f"majority: {'; '.join(str(error) for error in unread)}{by_hand}"
                )
        except BluegreenError:
            self.unlock(owner, taken)
            raise
        return warnings

    def _lock_one(
        self, node: NodeHook, owner: Owner, content: str, removable: Callable[[Owner, str], str]
    ) -> list[str]:
        warnings: list[str] = []
        for _ in range(3):
            found = node.done(shell.take_lock(node.config_path, content), "taking the lock").sections()
            if "taken" in found:
                return warnings
            if "lock" not in found:
                continue
            other = parse_owner(found["lock"], where=f"{node.where}: {node.config_path}{shell.LOCK}")
            if other.is_same_run(owner):
                return warnings
            warnings.append(removable(other, node.member))
            node.done(shell.drop_lock(node.config_path, found["lock"]), "removing the lock")
        raise FailedForNowError(f"{node.where}: the lock changed hands while it was taken")

    def _other_owners(self, owner: Owner, states: Mapping[str, NodeState]) -> Iterator[tuple[str, Owner]]:
        for name, state in sorted(states.items()):
            if state.lock is not None:
                where = f"{self.nodes[name].where}: {self.nodes[name].config_path}{shell.LOCK}"
                other = parse_owner(state.lock, where=where)
                if not other.is_same_run(owner):
                    yield name, other

    def holds_lock(self, owner: Owner, states: Mapping[str, NodeState]) -> bool:
        """Tell whether a run holds the lock on some of the members and nobody else does on any.

        :raises LockedError: when a lock cannot be read.
        """
        return any(state.lock is not None for state in states.values()) and not any(self._other_owners(owner, states))

    def refuse_foreign_lock(self, owner: Owner, states: Mapping[str, NodeState]) -> None:
        """Refuse to act when another run holds the lock on one of the members, as a run does whose lock was broken.

        :raises LockedError: which says who holds it.
        """
        for name, other in self._other_owners(owner, states):
            raise LockedError(
                f"{self.cluster.name} is locked by {other} (found on {name}); expected this run to hold it. "
                "Nothing more is done here: look at that run"
            )

    def unlock(self, owner: Owner, members: Iterable[str]) -> None:
        """Give back this run's lock on the members; another run's is left alone."""
        content = owner.model_dump_json()

        def drop(node: NodeHook) -> None:
            found = node.done(shell.take_lock(node.config_path, content), "reading the lock").sections()
            text = found.get("lock", content)
            if "taken" in found or parse_owner(text, where=node.where).is_same_run(owner):
                node.done(shell.drop_lock(node.config_path, text), "giving the lock back")

        _, problems = self.try_each(members, drop)
        for member, problem in sorted(problems.items()):
            log.warning("the lock on %s was not given back: %s", member, problem)

    def member_states(self, topology: Topology | None) -> dict[str, dict[str, object]]:
        """Return role, timeline and state of each member, for a report."""
        members = topology.members if topology else ()
        return {
            member.name: {"role": member.role, "timeline": member.timeline, "state": member.state} for member in members
        }


def ssh_host(cluster: Cluster, member: str, host: str) -> str:
    """Return where SSH finds a member."""
    return cluster.ssh_hosts.get(member) or host


def require_same(found: Mapping[str, str], expected: str, what: str) -> None:
    """Refuse unless every member has the expected value.

    :raises RefusedError: with the members that differ.
    """
    others = {member: value for member, value in found.items() if value != expected}
    if others:
        listed = ", ".join(f"{member}: {value}" for member, value in sorted(others.items()))
        raise RefusedError(f"found as {what}: {listed}; expected {expected} on every member")
