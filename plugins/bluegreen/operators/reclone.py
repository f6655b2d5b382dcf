"""Have Patroni clone a released standby afresh, where the WAL that it needs is gone."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.leadership import check_another_leads
from bluegreen.hooks.proof import prove_identity
from bluegreen.hooks.replay import replay_position, why_wal_is_gone
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, survey_as_owner
from bluegreen.operators.rejoin import CLONE_SECONDS, REJOIN_TIMEOUT, check_streaming
from bluegreen.topology import is_being_cloned, slot_name

if TYPE_CHECKING:
    from airflow.sdk import Context

PATIENCE_SECONDS = 120
CATCHING_UP_SECONDS = 3600
BEGINS_SECONDS = 60


class RecloneLostStandbyOperator(BluegreenOperator):
    """Look whether a released standby streams; where it stands still and its WAL is gone, have it cloned afresh.

    One that receives WAL, or whose replay goes on (from an archive, say), is left alone. Before Patroni empties
    the data directory it is proven to be one of this cluster, and the leader to take writes.

    Example::

        rejoin = RecloneLostStandbyOperator(task_id="rejoin", cluster="orders")

    :raises RefusedError: when the data directory is not proven to be this cluster's.
    :raises FailedForNowError: when the clone did not come to stream in time.
    """

    def __init__(self, *, execution_timeout: timedelta = REJOIN_TIMEOUT, **kwargs: Any) -> None:
        super().__init__(execution_timeout=execution_timeout, **kwargs)

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Wait for a verdict; clone; prove."""
        survey = survey_as_owner(hook, context, patroni_must_answer=True)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None or checkpoint.phase is not Phase.RELEASING:
            raise RefusedError(f"{hook.cluster.name} has no checkpoint that is being released; nothing is cloned")
        held = checkpoint.held
        survey.require([held])
        if is_being_cloned(survey.topology, held):
            reason = "Patroni was cloning it already"
        else:
            reason = self._why_lost(hook, survey, checkpoint)
            if not reason:
                return {}
            self.log.warning("%s: it is cloned afresh", reason)
            self._begin(hook, survey, checkpoint)
        wait_until(lambda: self._look(hook, held), seconds=CLONE_SECONDS, every_seconds=1)
        node, state = hook.nodes[held], survey.states[held]
        prove_identity(node.data_directory(state.config), checkpoint, node.where)
        return {
            "member": held,
            "rejoined_by": "reclone",
            "rejoined_because": reason,
            "warnings": [f"{held} was cloned afresh: {reason}"],
        }

    def _why_lost(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> str:
        """Return why the standby can only be cloned, or an empty text where it streams or may still do so."""
        position, since = -1, time.monotonic()

        def look() -> str:
            nonlocal position, since
            try:
                check_streaming(hook, hook.patroni.topology(), checkpoint.held)
            except FailedForNowError as error:
                found, _ = replay_position(hook, checkpoint)
                if found > position:
                    position, since = found, time.monotonic()
                if time.monotonic() - since < PATIENCE_SECONDS:
                    raise
                reason = why_wal_is_gone(hook, survey, checkpoint)
                self.log.info("%s: %s", error, reason or "but the WAL that it needs may still be there")
                return reason
            return ""

        try:
            return wait_until(look, seconds=CATCHING_UP_SECONDS, every_seconds=1)
        except FailedForNowError as error:
            self.log.warning("%s", error)
            return ""

    def _begin(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> None:
        held = checkpoint.held
        leader = check_another_leads(hook, held)
        survey.require([held, leader.name])
        for name in (held, leader.name):
            node, state = hook.nodes[name], survey.states[name]
            prove_identity(node.data_directory(state.config), checkpoint, node.where)
        hook.patroni.reinitialize(checkpoint.members[held].api_url)

        def begun_or_ended() -> None:
            topology = hook.patroni.topology()
            if not is_being_cloned(topology, held):
                check_streaming(hook, topology, held)

        try:
            wait_until(begun_or_ended, seconds=BEGINS_SECONDS)
        except FailedForNowError as error:
            self.log.info("Patroni does not call %s being cloned, and %s", held, error)

    def _look(self, hook: ClusterHook, held: str) -> None:
        topology = hook.patroni.topology()
        try:
            check_streaming(hook, topology, held)
        except FailedForNowError:
            leader = topology.leader
            slots = hook.sql(leader.name, leader.host, leader.port).rows("slots")
            running = any(one.name == held and one.is_running for one in topology.members)
            lost = [slot for slot in slots if slot["slot_name"] == slot_name(held) and slot["wal_status"] == "lost"]
            if running and lost:
                raise FailedForNowError(
                    f"{held} was cloned, but its slot on {leader.name} is lost, and Patroni has not made it anew; "
                    f"where it does not, run select pg_drop_replication_slot('{slot_name(held)}') on {leader.name}"
                ) from None
            raise
