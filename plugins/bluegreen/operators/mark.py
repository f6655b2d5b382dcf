"""Mark the state to come back to, and prove that the held standby stands before it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.exceptions import CheckpointLostError, FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.proof import look_at_held
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, survey_as_owner
from bluegreen.topology import Topology, failover_candidates

if TYPE_CHECKING:
    from airflow.sdk import Context

MARKS = 3
RECEIVED_SECONDS = 30


class MarkCheckpointOperator(BluegreenOperator):
    """Take the mark on the primary and prove it (hazards H2 and H11).

    One transaction creates the restore point and takes the XID; after its COMMIT the insert position is
    read. The proof: the held standby and every replica that a failover could choose have received that
    position, and the XID is not visible on the held one. A mark that is visible came too early for the
    hold and is taken again.

    Example::

        mark = MarkCheckpointOperator(task_id="mark", cluster="orders")

    :raises RefusedError: when no standby is held.
    :raises CheckpointLostError: when three marks in a row were applied on the held standby.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Mark, wait until it is received, look whether it is visible."""
        survey = survey_as_owner(hook, context, patroni_must_answer=True)
        checkpoint, topology = survey.known_checkpoint(), survey.topology
        if checkpoint is None or topology is None:
            raise RefusedError(f"no standby of {hook.cluster.name} is held; hold one first")
        if checkpoint.phase is Phase.HELD:
            return {"checkpoint": checkpoint.public(), "marks": 0}
        for attempt in range(1, MARKS + 1):
            if checkpoint.xid is None:
                checkpoint = self._mark(hook, checkpoint, topology)
            try:
                wait_until(partial(_received, hook, checkpoint, topology), seconds=RECEIVED_SECONDS)
            except CheckpointLostError as error:
                self.log.warning("mark %s: %s. Marking again", attempt, error)
                checkpoint = checkpoint.model_copy(update={"xid": None, "lsn": None})
                continue
            # Written before the deployment can start, so that a mark is never known to Airflow alone.
            hook.write_journal(checkpoint, needed=checkpoint.members)
            self.log.info("marked: transaction %s, received up to %s", checkpoint.xid, checkpoint.lsn)
            return {"checkpoint": checkpoint.public(), "marks": attempt}
        raise CheckpointLostError(
            f"{checkpoint.held} applied {MARKS} marks in a row although it reports the hold in effect; "
            "no checkpoint was taken. Look at its recovery_min_apply_delay and its server log"
        )

    def _mark(self, hook: ClusterHook, checkpoint: Checkpoint, topology: Topology) -> Checkpoint:
        leader = topology.leader
        primary = hook.sql(leader.name, leader.host, leader.port)
        mark = primary.row("mark", name=f"bluegreen_{checkpoint.id}")
        lsn = primary.row("insert_lsn")["lsn"]
        if str(mark["system_identifier"]) != checkpoint.system_identifier:
            raise RefusedError(
                f"{primary.where} has the system identifier {mark['system_identifier']}, expected "
                f"{checkpoint.system_identifier}"
            )
        return checkpoint.advanced(
            Phase.HOLDING,
            xid=int(mark["xid"]),
            restore_point_lsn=mark["restore_point_lsn"],
            lsn=lsn,
            timeline=int(mark["timeline"]),
            taken_at=str(mark["taken_at"]),
            leader=leader.name,
        )


def _received(hook: ClusterHook, checkpoint: Checkpoint, topology: Topology) -> None:
    if not look_at_held(hook, checkpoint).received:
        raise FailedForNowError(f"{checkpoint.held} has not received the mark at {checkpoint.lsn} yet")
    for member in failover_candidates(topology, checkpoint.held):
        row = hook.sql(member.name, member.host, member.port).row("proof", xid=checkpoint.xid, lsn=checkpoint.lsn)
        if not row["received"]:
            raise FailedForNowError(
                f"{member.name}, which a failover could choose, has not received the mark at {checkpoint.lsn} yet"
            )
