"""Close a checkpoint: its journal goes only when nothing depends on it any more."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bluegreen.checkpoint import Phase
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.hold import check_released
from bluegreen.hooks.journals import remove_journals
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, owner_of, survey_as_owner
from bluegreen.recovery.history import history_name

if TYPE_CHECKING:
    from airflow.sdk import Context

STREAMING_SECONDS = 60


class CloseCheckpointOperator(BluegreenOperator):
    """Prove that resume or rollback is complete, then remove the journal from every member.

    After a resume: the hold is gone and the standby streams. After a rollback: every member that is not
    declared down streams from the new leader and has the same history texts. A member that is declared
    down keeps the journal alive, so that a later rollback run finds what is left to do.

    Example::

        close = CloseCheckpointOperator(task_id="close", cluster="orders")

    :raises FailedForNowError: when a member is not as it should be.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Prove, then remove."""
        survey = survey_as_owner(hook, context, patroni_must_answer=True)
        checkpoint = survey.checkpoint
        if checkpoint is None:
            return {"closed": False, "members": hook.member_states(survey.topology)}
        if checkpoint.phase not in {Phase.RELEASING, Phase.TAKEN_OVER}:
            raise RefusedError(
                f"checkpoint {checkpoint.id} is {checkpoint.phase.value!r}; expected resume or rollback to have ended"
            )
        down = set(checkpoint.hosts_down)
        members = sorted(set(checkpoint.members) - down)
        survey.require(members)
        wait_until(partial(_all_stream, hook, members), seconds=STREAMING_SECONDS, every_seconds=0.3)
        if checkpoint.phase is Phase.RELEASING:
            check_released(hook, checkpoint)
        else:
            texts = {
                name: found.histories.get(history_name(checkpoint.new_timeline or 0), "")
                for name, found in hook.on_each(
                    members, lambda node: node.data_directory(survey.states[node.member].config)
                ).items()
            }
            if len(set(texts.values())) != 1 or checkpoint.branch_line not in texts[checkpoint.held]:
                raise RefusedError(
                    f"the members' histories of timeline {checkpoint.new_timeline} differ: "
                    + ", ".join(f"{name}: {text!r}" for name, text in sorted(texts.items()))
                    + ". Re-clone the members that differ from the leader"
                )
        result: dict[str, Any] = {"closed": not down, "members": hook.member_states(hook.patroni.topology())}
        if down:
            result["warnings"] = [
                f"{', '.join(sorted(down))} was declared down and has not rejoined: it still has the discarded data. "
                "Before it starts, move its Patroni configuration aside; then run bluegreen_rollback again without it "
                "in hosts_down"
            ]
            return result
        remove_journals(hook, checkpoint, set(members))
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


def _all_stream(hook: ClusterHook, members: list[str]) -> None:
    topology = hook.patroni.topology()
    leader = topology.leader
    streaming = {row["application_name"] for row in hook.replication(topology) if row["state"] == "streaming"}
    for name in members:
        member = topology.member(name)
        if name != leader.name and (member.timeline != leader.timeline or not member.is_running):
            raise FailedForNowError(f"{name} is {member.state} on timeline {member.timeline}, not {leader.timeline}")
        if name not in {leader.name, *streaming}:
            raise FailedForNowError(f"{name} does not stream yet")
