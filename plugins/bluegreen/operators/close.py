"""Close a checkpoint: its journal goes only when nothing depends on it any more."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.databases import complete_databases
from bluegreen.hooks.hold import check_released, check_tags
from bluegreen.hooks.journals import remove_journals
from bluegreen.hooks.leadership import continues_branch, look_at_leader, restore_dynamic_config
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, owner_of, require_lock
from bluegreen.recovery.history import history_name
from bluegreen.topology import kept_out_of_elections

if TYPE_CHECKING:
    from airflow.sdk import Context

STREAMING_SECONDS = 60
TAG_SECONDS = 40
CONFIG_SECONDS = 60


class CloseCheckpointOperator(BluegreenOperator):
    """Prove that resume or rollback is complete, then remove the journal from every member.

    After a resume: the hold is gone and the standby streams. After a rollback: every member that is not
    declared down streams from the new leader and has the same history texts, and ``/config`` is as it was.
    A member that is declared down keeps the journal alive, so that a later rollback run finds what is left
    to do.

    Example::

        close = CloseCheckpointOperator(task_id="close", cluster="orders")

    :raises FailedForNowError: when a member is not as it should be.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Prove, then remove."""
        survey = hook.survey(patroni_must_answer=True)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None:
            return {"closed": False, "members": hook.member_states(survey.topology)}
        require_lock(hook, context, survey)
        if checkpoint.phase not in {Phase.RELEASING, Phase.TAKEN_OVER}:
            raise RefusedError(
                f"checkpoint {checkpoint.id} is {checkpoint.phase.value!r}; expected resume or rollback to have ended"
            )
        down = set(checkpoint.hosts_down)
        members = sorted(set(checkpoint.members) - down)
        survey.require(members)
        warnings: list[str] = []
        if checkpoint.phase is Phase.TAKEN_OVER:
            leader = wait_until(partial(look_at_leader, hook, survey, checkpoint), seconds=STREAMING_SECONDS)
            if not checkpoint.config_proven:
                warnings = restore_dynamic_config(hook, checkpoint, leader, seconds=CONFIG_SECONDS)
                checkpoint = checkpoint.advanced(Phase.TAKEN_OVER, config_proven=True)
                hook.write_journal(checkpoint, needed=[checkpoint.held], optional=checkpoint.others)
        wait_until(partial(_all_stream, hook, members), seconds=STREAMING_SECONDS, every_seconds=0.3)
        if checkpoint.phase is Phase.RELEASING:
            check_released(hook, checkpoint)
        else:
            _check_histories(hook, survey, checkpoint, members)
            complete_databases(hook, survey, checkpoint, members)
        result: dict[str, Any] = {
            "closed": not down,
            "members": hook.member_states(hook.patroni.topology()),
            "warnings": warnings,
        }
        if down:
            warnings += [
                f"{', '.join(sorted(down))} was declared down and has not rejoined: it still has the discarded data. "
                "Before it starts, move its Patroni configuration aside; then run bluegreen_rollback again without it "
                "in hosts_down"
            ]
            return result
        if checkpoint.phase is Phase.TAKEN_OVER:
            warnings += _restore_owners_tag(hook, checkpoint)
            warnings += _archive_fails(hook)
        keep = _log_in_use(hook, survey, checkpoint)
        if keep:
            warnings.append(
                f"{checkpoint.held}: its server was started outside Patroni's service, and logs to "
                f"{hook.nodes[checkpoint.held].config_path}{shell.LOG} until it is restarted. Restart it with "
                "patronictl restart when that does no harm, then remove that file"
            )
        remove_journals(hook, checkpoint, set(members), keep=keep)
        return result


class UnlockClusterOperator(BluegreenOperator):
    """Give this run's lock on a cluster back; another run's is left alone.

    Example::

        unlock = UnlockClusterOperator(task_id="unlock", cluster="orders", trigger_rule="all_done")
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Remove the lock files that name this run."""
        survey = hook.survey()
        hook.unlock(owner_of(context, ""), survey.states)
        return {"members": hook.member_states(survey.topology)}


def _check_histories(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, members: list[str]) -> None:
    leader = look_at_leader(hook, survey, checkpoint)
    found = hook.on_each(members, lambda node: node.data_directory(survey.states[node.member].config))
    texts = {name: one.histories.get(history_name(leader.timeline), "") for name, one in found.items()}
    if len(set(texts.values())) != 1 or not continues_branch(found[leader.name], checkpoint, leader.timeline):
        raise RefusedError(
            f"the members' histories of timeline {leader.timeline} differ: "
            + ", ".join(f"{name}: {text!r}" for name, text in sorted(texts.items()))
            + ". Re-clone the members that differ from the leader"
        )


def _log_in_use(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> list[str]:
    """Return the ending of the recovery's log where the server still writes there, as one without a collector does."""
    node = hook.nodes[checkpoint.held]
    data_dir = survey.states[checkpoint.held].config.data_dir
    said = node.done(shell.logs_to(data_dir, node.config_path + shell.LOG), "looking where the server logs to")
    return [shell.LOG] if "used" in said.sections() else []


def _archive_fails(hook: ClusterHook) -> list[str]:
    """Say where the new leader cannot archive: its WAL piles up, and no restore from the archive reaches it."""
    leader = hook.patroni.topology().leader
    row = hook.sql(leader.name, leader.host, leader.port).row("archiver")
    if not row["fails"]:
        return []
    return [
        f"{leader.name} could not archive {row['last_failed_wal']} ({row['last_failed_time']}): its WAL piles up, and "
        "the archive does not have the new timeline. It was started outside Patroni's service, without the environment "
        "that the archive command may need: `patronictl restart` it when that does no harm, and read its log"
    ]


def _restore_owners_tag(hook: ClusterHook, checkpoint: Checkpoint) -> list[str]:
    """Give the new leader the configuration that its owner wrote, where it ran without its tag."""
    node, address = hook.nodes[checkpoint.held], checkpoint.members[checkpoint.held]
    node.done(shell.restore_clean(node.config_path), "restoring the owner's tag")
    tags = node.state().config.tags
    if not kept_out_of_elections(tags):
        return []
    # Also where an earlier try has put the file back: whether Patroni read it is not known.
    hook.patroni.reload(address.api_url)
    wanted = {name: tags[name] for name in ("nofailover", "failover_priority") if name in tags}
    wait_until(partial(check_tags, hook.patroni, address.api_url, wanted), seconds=TAG_SECONDS)
    if hook.patroni.topology().leader.name != checkpoint.held:
        return []
    return [
        f"{checkpoint.held} leads and its own configuration keeps it out of elections, as before. Under such a "
        "leader Patroni 4 keeps no slots for replicas: one that connects anew finds none and does not stream. Switch "
        "over to another member, or take the tag out"
    ]


def _all_stream(hook: ClusterHook, members: list[str]) -> None:
    topology = hook.patroni.topology()
    leader = topology.leader
    streaming = {row["application_name"] for row in hook.replication(topology) if row["state"] == "streaming"}
    known = {member.name: member for member in topology.members}
    for name in members:
        if name not in known:
            raise FailedForNowError(
                f"{name} is not in the cluster, so Patroni does not run there; expected it to stream. Start Patroni on "
                f"{name}, then run this again"
            )
        member = known[name]
        if name != leader.name and (member.timeline != leader.timeline or not member.is_running):
            raise FailedForNowError(f"{name} is {member.state} on timeline {member.timeline}, not {leader.timeline}")
        if name not in {leader.name, *streaming}:
            raise FailedForNowError(f"{name} does not stream yet")
