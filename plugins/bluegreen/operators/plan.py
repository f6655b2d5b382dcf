"""Plan a rollback: everything that can refuse comes before anything is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Phase, check_id
from bluegreen.exceptions import (
    BluegreenError,
    CheckpointLostError,
    FailedForNowError,
    LockedError,
    RefusedError,
    UnreachableError,
)
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.dcs import list_members
from bluegreen.hooks.node import DataDirectory, NodeHook, NodeState
from bluegreen.hooks.promotion import begun, promoted
from bluegreen.hooks.proof import look_at_held, prove_identity, prove_wal, require_room
from bluegreen.hooks.standalone import Standalone
from bluegreen.hooks.stopping import check_host_down
from bluegreen.operators.base import BluegreenOperator, deployment_of, is_running, lock_cluster
from bluegreen.operators.rejoin import ASKED_FOR, check_how, why_no_rewind, why_rewind
from bluegreen.recovery.versions import ServerVersion

if TYPE_CHECKING:
    from airflow.sdk import Context

ROLLBACK_FIELDS = ("checkpoint", "confirm", "reason", "rejoin", "hosts_down", "take_over", "break_lock")


class PlanRollbackOperator(BluegreenOperator):
    """Lock the cluster, prove that the rollback would work, and say what it will discard.

    Returns ``checkpoint`` (the record), ``replicas``, ``leader`` and ``held`` (mappings for
    :class:`StopMembersOperator`), ``others`` (names), ``parts`` (each member's part), ``discarded`` and
    ``warnings``.

    Example::

        plan = PlanRollbackOperator(
            task_id="plan", cluster="orders", checkpoint="bg_1", confirm="orders", reason="bad release"
        )

    :param checkpoint: the id that must be held (templated).
    :param confirm: the cluster's name again, typed by a person (templated).
    :param reason: why, for the report (templated).
    :param rejoin: ``auto``, ``rewind`` or ``reclone`` (templated).
    :param hosts_down: members that a person declares down and unable to come back (templated).
    :param take_over: roll back although the deployment's run is still going on (templated).
    :param break_lock: the run whose lock is broken (templated).
    :raises RefusedError: with the reason, when the rollback would not work or is not meant.
    """

    template_fields: Sequence[str] = (*BluegreenOperator.template_fields, *ROLLBACK_FIELDS)

    def __init__(
        self,
        *,
        checkpoint: Any,
        confirm: Any,
        reason: Any = "",
        rejoin: Any = "auto",
        hosts_down: Any = (),
        take_over: Any = False,
        break_lock: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=True, **kwargs)
        self.checkpoint = checkpoint
        self.confirm = confirm
        self.reason = reason
        self.rejoin = rejoin
        self.hosts_down = hosts_down
        self.take_over = take_over
        self.break_lock = break_lock

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Refuse, or write into the journal that a rollback begins."""
        if self.confirm != hook.cluster.name:
            raise RefusedError(
                f"confirm is {str(self.confirm)[:80]!r}; expected the cluster's name typed again: {hook.cluster.name}"
            )
        wanted = check_id(str(self.checkpoint or ""))
        how = check_how(self.rejoin)
        down = _names(self.hosts_down)
        survey = hook.survey()
        checkpoint = survey.known_checkpoint()
        if checkpoint is None:
            raise RefusedError(
                f"{hook.cluster.name} holds no checkpoint (no journal on any member); there is nothing to roll back to"
            )
        if checkpoint.id != wanted:
            raise RefusedError(f"the checkpoint held is {checkpoint.id}, found {wanted!r}; give the one that is held")
        if checkpoint.phase in {Phase.HOLDING, Phase.RELEASING}:
            raise CheckpointLostError(
                f"checkpoint {checkpoint.id} is {checkpoint.phase.value!r}, not held: "
                + ("it never was finished" if checkpoint.phase is Phase.HOLDING else "its hold is being released")
                + ", so nothing can be rolled back to. Run bluegreen_resume to clear it away"
            )
        _members_down(hook, survey, checkpoint, down)
        if survey.topology is not None:
            checkpoint.require_alone(member.name for member in survey.topology.members)
        members = sorted(set(checkpoint.members) - down)
        survey.require(members)
        if survey.topology is None and not checkpoint.past_no_return:
            # No Patroni runs, or none reaches the DCS; one in failsafe mode goes on serving meanwhile.
            checkpoint.require_alone(members_in_dcs(hook.nodes[checkpoint.held], survey.states[checkpoint.held]))
        if not checkpoint.past_no_return:
            hook.on_each(members, NodeHook.require_service_rights)
            if survey.topology is not None:
                hook.require_access(survey.topology, members)
        self._deployment_is_over(context, checkpoint)
        warnings = lock_cluster(
            hook,
            context,
            "rollback",
            survey,
            held=checkpoint.held,
            members=checkpoint.members,
            hosts_down=down,
            breaks=self.break_lock or None,
        )
        data = hook.on_each(members, lambda node: node.data_directory(survey.states[node.member].config))
        for name in members:
            # Past the point of no return another member's data may be gone: emptied, to be cloned.
            if name == checkpoint.held or not checkpoint.past_no_return:
                prove_identity(data[name], checkpoint, hook.nodes[name].where)
        discarded: dict[str, Any] = {}
        if not checkpoint.past_no_return:
            if how == "rewind":
                others = [name for name in members if name != checkpoint.held]
                _all_can_be_rewound(survey, data, others, ServerVersion(checkpoint.server_version_num))
            warnings += self._would_work(hook, survey, checkpoint, data)
            discarded, more = _discarded(hook, survey, checkpoint)
            warnings += more
        checkpoint = self._begin(hook, survey, checkpoint, down)
        return self._plan(survey, checkpoint, down, how, data) | {"discarded": discarded, "warnings": warnings}

    def _deployment_is_over(self, context: Context, checkpoint: Checkpoint) -> None:
        deployment = checkpoint.deployment
        if deployment is None or self.take_over is True or not is_running(context, deployment):
            return
        own = deployment_of(context)
        if own is None or not own.is_same_run(deployment):
            raise LockedError(
                f"checkpoint {checkpoint.id} belongs to {deployment}, which is still running; expected it to have "
                "ended. Wait for it, or set take_over if its deployment must be cut short"
            )

    def _would_work(
        self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, data: dict[str, DataDirectory]
    ) -> list[str]:
        """Prove that the mark is unreplayed and its WAL there, wherever a former try stopped."""
        warnings: list[str] = []
        if survey.topology is not None and survey.topology.paused:
            raise RefusedError(
                "the cluster is in maintenance mode, where stopping Patroni does not stop PostgreSQL; expected it "
                "off. Run `patronictl resume`, then try again"
            )
        node, state = hook.nodes[checkpoint.held], survey.states[checkpoint.held]
        found = data[checkpoint.held]
        standalone = Standalone(node, state, checkpoint)
        if promoted(checkpoint, found) or (begun(checkpoint, found) and state.is_alone and found.server_processes):
            # The second is about to be promoted. What becomes of it is proven when everybody is down.
            return warnings
        node.require_replaceable(standalone.originals)
        require_room(found, node.where)
        try:
            look_at_held(hook, checkpoint)
        except CheckpointLostError:
            raise
        except BluegreenError as error:
            # a former try may have stopped it, or shut it to the world
            if checkpoint.phase is Phase.HELD and not isinstance(error, UnreachableError):
                raise
            warnings.append(f"the held member's server does not answer ({error}); its WAL is the only proof")
        prove_wal(node, checkpoint, state.config.data_dir, found)
        return warnings

    def _begin(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, down: set[str]) -> Checkpoint:
        # where a former try's recovery was given up, the others have served since, and another may lead
        nobody_served = checkpoint.phase is Phase.RECOVERING and survey.topology is None
        if checkpoint.past_no_return or nobody_served:
            if set(checkpoint.hosts_down) == down:
                return checkpoint
            changed = checkpoint.advanced(checkpoint.phase, hosts_down=sorted(down))
        else:
            phase = Phase.RECOVERING if checkpoint.phase is Phase.RECOVERING else Phase.STOPPING
            config = checkpoint.dynamic_config
            leader = self._leads_now(hook, survey, checkpoint)
            if survey.topology is not None:
                try:
                    config = hook.patroni.dynamic_config(survey.topology.leader.api_url)
                except BluegreenError as error:
                    self.log.warning("the dynamic configuration is the checkpoint's: %s", error)
            changed = checkpoint.advanced(phase, hosts_down=sorted(down), dynamic_config=config, leader=leader)
        hook.write_journal(changed, needed=set(changed.members) - down)
        return changed

    def _leads_now(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> str:
        """Return who leads, and should lead again if all is put back: after a failover it has the last commits."""
        members = survey.topology.members if survey.topology else ()
        leads = [member for member in members if member.is_leader]
        if len(leads) != 1 or leads[0].name not in checkpoint.others:
            return checkpoint.leader
        (leader,) = leads
        try:
            if hook.sql(leader.name, leader.host, leader.port).row("identity")["in_recovery"] is not False:
                self.log.warning("%s is called the leader, and its server is in recovery", leader.name)
                return checkpoint.leader
        except BluegreenError as error:
            self.log.warning("whether the leader's server takes writes is not known: %s", error)
        return leader.name

    def _plan(
        self, survey: Survey, checkpoint: Checkpoint, down: set[str], how: str, data: dict[str, DataDirectory]
    ) -> dict[str, Any]:
        leaders = {member.name for member in survey.topology.members if member.is_leader} if survey.topology else set()
        leaders = (leaders or {checkpoint.leader}) - {checkpoint.held} - down
        others = [name for name in checkpoint.others if name not in down]
        version = ServerVersion(checkpoint.server_version_num)
        over = checkpoint.phase is Phase.TAKEN_OVER
        done = checkpoint.past_no_return and not survey.states[checkpoint.held].aside
        parts = {checkpoint.held: "recovers to the mark and becomes the leader"}
        for name in others:
            reason = why_no_rewind(data[name], survey.states[name], version)
            if how == "rewind" and reason:
                parts[name] = f"cannot be rewound ({reason})"
            elif how == "reclone" or reason:
                parts[name] = f"is cloned afresh ({reason if how == 'auto' else ASKED_FOR})"
            else:
                parts[name] = f"is rewound ({why_rewind(data[name]) if how == 'auto' else ASKED_FOR})"
        parts.update({name: "is declared down: rejoins later" for name in down})
        for name, part in sorted(parts.items()):
            self.log.info("%s %s", name, part)
        addresses = {name: place.model_dump() for name, place in checkpoint.members.items()}
        return {
            "checkpoint": checkpoint.public(),
            "reason": str(self.reason)[:2000],
            "rejoin": how,
            "replicas": {name: addresses[name] for name in others if name not in leaders and not over},
            "leader": {name: addresses[name] for name in others if name in leaders and not over},
            "held": {} if done else {checkpoint.held: addresses[checkpoint.held]},
            "others": others,
            "parts": parts,
        }


class ListMembersOperator(BaseOperator):
    """Return the names of some members as a list of their own, since only a task's whole result can be mapped over.

    Example::

        others = ListMembersOperator(task_id="others", members=plan.output["others"])

    :param members: the names (templated).
    """

    template_fields: Sequence[str] = ("members",)

    def __init__(self, *, members: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.members = members

    def execute(self, context: Context) -> list[str]:
        """Return them."""
        return sorted(_names(self.members))


def members_in_dcs(node: NodeHook, state: NodeState) -> list[str]:
    """Ask the DCS itself who is in the cluster, by ``patronictl`` on a node, also while every Patroni is stopped.

    :raises FailedForNowError: when it does not answer. A rollback needs it after its promotion, where it is too late.
    """
    listing = list_members(node, node.config_path + (shell.ASIDE if state.aside else ""), state.config.scope)
    if listing.members is None:
        raise FailedForNowError(
            f"no Patroni says who is in the cluster, and on {node.where} {listing.call}; expected the DCS to answer, "
            "since a rollback removes the cluster from it after the promotion. Bring the DCS back first; it said: "
            f"{listing.said}"
        )
    return list(listing.members)


def _names(value: object) -> set[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise RefusedError(f"found {str(value)[:80]!r} ; expected a list of members' names")
    return set(value)


def _members_down(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, down: set[str]) -> None:
    if unknown := sorted(down - set(checkpoint.members)):
        raise RefusedError(
            f"hosts_down names {', '.join(unknown)}; expected members of the cluster: {', '.join(checkpoint.members)}"
        )
    if checkpoint.held in down:
        raise RefusedError(f"hosts_down names {checkpoint.held}, the held member; expected it to be up")
    for name in sorted(down):
        check_host_down(hook.nodes[name], checkpoint.members[name], reached=survey.reached(name))
    unreachable = sorted(name for name in set(survey.problems) - down if name in checkpoint.members)
    if unreachable:
        raise RefusedError(
            f"{', '.join(unreachable)} cannot be reached ({survey.problems[unreachable[0]]}); a member that still runs "
            "with the discarded data must be stopped. Expected every member reachable, or, where its host is "
            "certainly down and cannot come back by itself, named in hosts_down"
        )


def _all_can_be_rewound(
    survey: Survey, data: dict[str, DataDirectory], others: list[str], version: ServerVersion
) -> None:
    reasons = {name: reason for name in others if (reason := why_no_rewind(data[name], survey.states[name], version))}
    if reasons:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise RefusedError(f"rejoin = rewind is not possible ({listed}); use rejoin = auto or reclone")


def _discarded(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """Return what a rollback discards, and who has seen it; a leader that does not answer is said."""
    if survey.topology is None:
        return {}, ["no Patroni answers: what the rollback discards could not be counted"]
    try:
        leader = survey.topology.leader
        sql = hook.sql(leader.name, leader.host, leader.port)
        row = sql.row("discarded", lsn=checkpoint.lsn, xid=checkpoint.xid, taken_at=checkpoint.taken_at)
        exposure = sql.row("exposure")
    except BluegreenError as error:
        return {}, [f"what the rollback discards could not be counted: {error}"]
    warnings = [
        f"{exposure[column]} {text}"
        for column, text in (
            ("logical_slots", "logical slot(s): their consumers may have seen what is discarded, and lose the slot"),
            (
                "prepared_transactions",
                "prepared transaction(s): those begun after the mark are discarded",
            ),
            (
                "subscriptions",
                "subscription(s): what they have received since the mark is lost, and their publishers do not send it "
                "again: refresh them with a fresh copy afterwards",
            ),
        )
        if exposure[column]
    ]
    return {
        "wal_bytes": int(row["wal_bytes"]),
        "transactions": int(row["transactions"]),
        "seconds": round(float(row["seconds"]), 1),
    }, warnings
