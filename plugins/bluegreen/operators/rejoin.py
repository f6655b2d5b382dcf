"""Bring another member back into the cluster: rewind it, or have Patroni clone it afresh."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.clusters import MAX_REWIND_TIMEOUT_SECONDS
from bluegreen.exceptions import BluegreenError, FailedForNowError, OutcomeUnknownError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.databases import complete_databases
from bluegreen.hooks.leadership import (
    Leader,
    continues_branch,
    look_at_leader,
    prove_history,
    prove_write,
    start_patroni,
)
from bluegreen.hooks.node import DataDirectory, NodeHook, NodeState
from bluegreen.hooks.proof import prove_identity
from bluegreen.hooks.stopping import check_down, is_clean, stop_member
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, survey_as_owner
from bluegreen.recovery.standalone import alone_settings, recovery_conf, start_options
from bluegreen.recovery.versions import ServerVersion
from bluegreen.topology import Topology, is_being_cloned

if TYPE_CHECKING:
    from airflow.sdk import Context

ASKED_FOR = "asked for"
ALREADY_BACK = "already back"
HOWS = ("auto", "rewind", "reclone")
STREAMING_SECONDS = 60
CLONE_SECONDS = 6 * 3600
# Start and stop after a crash, rewind, the replay after it, clone, each as long as it may be.
REJOIN_TIMEOUT = timedelta(seconds=4 * MAX_REWIND_TIMEOUT_SECONDS + CLONE_SECONDS + 3600)


class RejoinMemberOperator(BluegreenOperator):
    """Rewind one member to the new leader, or empty its data directory and let Patroni clone it.

    Before a data directory is emptied it is proven to be one of this cluster, and the new leader to
    lead, to have the proven history and to take writes. Rejoined means: it streams from the leader, on
    its timeline, with the same history text and system identifier.

    Example::

        rejoin = RejoinMemberOperator(task_id="rejoin", cluster="orders", member="n1", how="rewind")

    :param member: the member's name (templated).
    :param how: ``auto`` (rewind where it is possible, else clone), ``rewind`` or ``reclone`` (templated).
    :raises RefusedError: when a data directory is not proven to be this cluster's.
    :raises FailedForNowError: when the member did not come to stream in time.
    """

    template_fields: Sequence[str] = (*BluegreenOperator.template_fields, "member", "how")

    def __init__(
        self, *, member: str, how: str = "auto", execution_timeout: timedelta = REJOIN_TIMEOUT, **kwargs: Any
    ) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)
        self.member = member
        self.how = how

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Look whether it is back already; choose; rewind or clone; prove."""
        how = check_how(self.how)
        survey = survey_as_owner(hook, context)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None or checkpoint.phase is not Phase.TAKEN_OVER:
            raise RefusedError(f"{hook.cluster.name} has no rollback whose takeover is proven; nothing rejoins before")
        survey.require([self.member, checkpoint.held])
        node, state = hook.nodes[self.member], survey.states[self.member]
        leader = self._leader(hook, survey, checkpoint)
        survey.require([leader.name])
        whole = {leader.name, checkpoint.held, self.member}
        if leader.name == self.member:
            complete_databases(hook, survey, checkpoint, whole)
            return {"member": self.member, "rejoined_by": ALREADY_BACK}
        if not state.aside:
            if is_being_cloned(survey.topology, self.member):
                # Whoever began it was ended meanwhile, and Patroni was not.
                back = self._back(hook, checkpoint, survey, "reclone", seconds=CLONE_SECONDS)
                return {**back, "rejoined_because": "Patroni was cloning it already"}
            try:
                back = self._back_once_started(hook, checkpoint, survey, ALREADY_BACK, seconds=20)
            except FailedForNowError as error:
                self.log.info("%s is started but not back: %s", self.member, error)
            else:
                # Its Patroni may have rewound it.
                complete_databases(hook, survey, checkpoint, whole)
                return back
        address = checkpoint.members[self.member]
        found = stop_member(hook.patroni, node, address)
        reason = why_no_rewind(found, state, ServerVersion(checkpoint.server_version_num))
        if how == "rewind" and reason:
            raise RefusedError(f"{node.where}: cannot be rewound: {reason}. Use rejoin = reclone")
        if how != "reclone" and not reason:
            try:
                self._rewind(hook, survey, checkpoint, found, leader)
            except (FailedForNowError, OutcomeUnknownError) as error:
                reason = self._no_rewind(error)
            else:
                # Where only the start fails nothing is wrong with the data.
                self._start(node)
                try:
                    back = self._back_once_started(hook, checkpoint, survey, "rewind", seconds=STREAMING_SECONDS)
                    return {**back, "rejoined_because": why_rewind(found) if how == "auto" else ASKED_FOR}
                except (FailedForNowError, OutcomeUnknownError) as error:
                    reason = self._no_rewind(error)
            stop_member(hook.patroni, node, address)
        warnings = self._reclone(hook, survey, checkpoint)
        back = self._back(hook, checkpoint, survey, "reclone", seconds=CLONE_SECONDS)
        because = reason if how == "auto" and reason else ASKED_FOR
        return {**back, "rejoined_because": because, "warnings": warnings}

    def _leader(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> Leader:
        return wait_until(lambda: look_at_leader(hook, survey, checkpoint), seconds=30)

    def _no_rewind(self, error: BluegreenError) -> str:
        if self.how == "rewind":
            raise error
        self.log.warning("%s: rewinding did not bring it back: %s. Cloning it afresh", self.member, error)
        return f"rewinding did not bring it back ({error})"

    def _start(self, node: NodeHook) -> None:
        node.done(shell.bring_back(node.config_path), "bringing Patroni's configuration back")
        start_patroni(node)

    def _rewind(
        self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, found: DataDirectory, leader: Leader
    ) -> None:
        """Have the member's data continue the leader's line; an earlier try may have done so already."""
        node, state = hook.nodes[self.member], survey.states[self.member]
        version, seconds = ServerVersion(checkpoint.server_version_num), hook.cluster.rewind_timeout_seconds
        prove_identity(found, checkpoint, node.where)
        begun = found.has("backup_label")
        if begun and not found.has(shell.REWOUND):
            raise FailedForNowError(
                f"{node.where}: found a backup_label, expected none: a copy or a rewind has not ended, and cannot be "
                "rewound. Use rejoin = reclone"
            )
        if begun or found.timeline == leader.timeline:
            # Rewinding it once more would say that there is nothing to do, or worse.
            if not continues_branch(found, checkpoint, found.timeline):
                raise FailedForNowError(
                    f"{node.where}: found timeline {found.timeline} with another history than the leader's, which "
                    "cannot be rewound. Use rejoin = reclone"
                )
            self.log.info("%s is on timeline %s, a line of the leader's, already", self.member, found.timeline)
        else:
            if not is_clean(found):
                self._recover_crashed(node, state, found, version, seconds=seconds)
            address = checkpoint.members[leader.name]
            result = node.done(
                shell.rewind(
                    state.config.data_dir,
                    found.bin_dir,
                    source=f"host={address.host} port={address.port} dbname=postgres connect_timeout=5 "
                    "application_name=bluegreen",
                    login=state.config.rewind_login(),
                    seconds=seconds,
                    recovers_first=version.rewind_recovers_first,
                ),
                "pg_rewind",
                timeout_seconds=seconds + 10,
            )
            self.log.info("%s: %s", self.member, " ".join(result.output.split())[-300:])
        complete_databases(hook, survey, checkpoint, {leader.name, checkpoint.held, self.member})

    def _recover_crashed(
        self, node: NodeHook, state: NodeState, found: DataDirectory, version: ServerVersion, *, seconds: int
    ) -> None:
        hba = f"{state.config.data_dir}/.bluegreen-hba"
        settings = alone_settings(version, hba_file=hba)
        try:
            options = start_options(found.file("postmaster.opts"))
        except RefusedError as error:
            raise FailedForNowError(f"{node.where}: it crashed, and {error}") from None
        for name, value in settings.items():
            options += ["-c", f"{name}={value}"]
        standby = {"standby_mode": "on", "recovery_target_timeline": "latest"} if version.has_recovery_conf else {}
        node.done(
            shell.recover_crashed(
                state.config.data_dir,
                found.bin_dir,
                options,
                recovery_conf=recovery_conf(standby),
                hba=hba,
                seconds=seconds,
            ),
            "recovering the server from its crash, before pg_rewind",
            timeout_seconds=2 * seconds + 10,
        )

    def _reclone(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> list[str]:
        node, state = hook.nodes[self.member], survey.states[self.member]
        prove_write(hook, checkpoint, self._leader(hook, survey, checkpoint))
        address = checkpoint.members[self.member]
        found = check_down(hook.patroni, node, state, address)
        warnings = []
        if found.wal_link and not state.config.clones_with_waldir:
            warnings.append(
                f"{self.member}: its WAL directory was a link to {found.wal_link}; Patroni clones it into the data "
                "directory, since its configuration has no `basebackup: waldir`"
            )
        version = ServerVersion(checkpoint.server_version_num)
        node.done(
            shell.empty_data_directory(
                state.config.data_dir,
                system_identifier=checkpoint.system_identifier,
                bin_dir=found.bin_dir,
                major=f"{version.major:g}",
            ),
            "emptying the data directory",
            timeout_seconds=1800,
        )
        self._start(node)
        return warnings

    def _back_once_started(
        self, hook: ClusterHook, checkpoint: Checkpoint, survey: Survey, by: str, *, seconds: float
    ) -> dict[str, Any]:
        """Wait until it streams, for longer than ``seconds`` only while its server replays what was rewound."""
        begin, most = time.monotonic(), hook.cluster.rewind_timeout_seconds
        while True:
            try:
                return self._back(hook, checkpoint, survey, by, seconds=seconds)
            except FailedForNowError as error:
                found = hook.nodes[self.member].data_directory(survey.states[self.member].config)
                if time.monotonic() - begin > most or not found.server_starts:
                    raise
                self.log.info("%s starts up, %.0f s so far: %s", self.member, time.monotonic() - begin, error)

    def _back(
        self, hook: ClusterHook, checkpoint: Checkpoint, survey: Survey, by: str, *, seconds: float
    ) -> dict[str, Any]:
        node, state = hook.nodes[self.member], survey.states[self.member]
        woken = False

        def streams() -> int:
            nonlocal woken
            topology = hook.patroni.topology()
            if not woken and any(known.name == self.member for known in topology.members):
                # Now that it is a member the leader can make its slot; one that finds none tries again 5 s later.
                woken = True
                hook.patroni.wake(topology.leader.api_url)
            return check_streaming(hook, topology, self.member)

        timeline = wait_until(streams, seconds=seconds, every_seconds=0.2)
        found = wait_until(lambda: prove_history(node, state, checkpoint, timeline), seconds=20)
        prove_identity(found, checkpoint, node.where)
        try:
            path = f"{state.config.data_dir}/{shell.REWOUND}"
            node.done(shell.remove_files(path), "removing the note that pg_rewind has ended")
        except (FailedForNowError, OutcomeUnknownError) as error:
            self.log.warning("%s. It is back, and the note does no harm", error)
        self.log.info("%s is back: %s", self.member, by)
        return {"member": self.member, "rejoined_by": by}


def check_how(value: object) -> str:
    """Return how to rejoin, if it is one of the three.

    :raises RefusedError: otherwise.
    """
    if value not in HOWS:
        raise RefusedError(f"found {str(value)[:40]!r} as rejoin; expected one of {', '.join(HOWS)}")
    return str(value)


def why_no_rewind(found: DataDirectory, state: NodeState, version: ServerVersion) -> str:
    """Return why ``pg_rewind`` is not possible, or not safe, on a stopped member, or an empty text."""
    if "pg_rewind" not in found.programs:
        return f"no pg_rewind in {found.bin_dir!r}"
    if version.rewind_overlooks_standbys:
        return "pg_rewind of a PostgreSQL from before February 2021 leaves discarded pages on a standby"
    try:
        if not _tracks_hint_bits(found):
            return "neither data checksums nor wal_log_hints are on"
    except BluegreenError as error:
        return str(error)
    if not state.config.rewind_login():
        return "its Patroni configuration names no user for it"
    return ""


def why_rewind(found: DataDirectory) -> str:
    """Return what makes ``pg_rewind`` possible on a member on which nothing speaks against it.

    :raises FailedForNowError: when ``pg_controldata`` does not say.
    """
    return f"{' and '.join(_tracks_hint_bits(found))} are on"


def _tracks_hint_bits(found: DataDirectory) -> list[str]:
    """Return which of the two that ``pg_rewind`` needs one of are on (pg_rewind, Notes)."""
    checksums = found.control("Data page checksum version") not in {"", "0"}
    hints = found.control("wal_log_hints setting") == "on"
    return [name for name, on in (("data checksums", checksums), ("wal_log_hints", hints)) if on]


def check_streaming(hook: ClusterHook, topology: Topology, member: str) -> int:
    """Look whether a member streams on the leader's timeline, as both sides say, and return that timeline.

    :raises FailedForNowError: while it does not.
    """
    found = next((known for known in topology.members if known.name == member), None)
    if found is None:
        raise FailedForNowError(f"{member} is not in the cluster yet; its members are {topology.names}")
    timeline = topology.leader.timeline
    if timeline is None or found.is_leader or not found.is_running or found.timeline != timeline:
        raise FailedForNowError(
            f"{member} is {found.role} ({found.state}) on timeline {found.timeline}; expected a replica that streams "
            f"on the leader's, {timeline}"
        )
    states = [row["state"] for row in hook.replication(topology) if row["application_name"] == member]
    if states != ["streaming"]:
        raise FailedForNowError(f"pg_stat_replication shows {member} as {states}; expected it to stream")
    return timeline
