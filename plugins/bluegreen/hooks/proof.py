"""The proof that a standby is held before the mark (hazard H2), by SQL and by its WAL."""

from __future__ import annotations

from dataclasses import dataclass

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint
from bluegreen.exceptions import CheckpointLostError, FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.node import DataDirectory, NodeHook
from bluegreen.hooks.promotion import STANDBY_STATES, STATE, was_standby
from bluegreen.recovery.versions import ServerVersion
from bluegreen.recovery.wal import commit_is_in, missing_segments, parse_lsn, segment_ids, speaks_of_wal

LOST = "take a new one before the next deployment; this one cannot be rolled back to"
# the end of a recovery copies one WAL file for the new timeline, and prepares the next
SEGMENTS_TO_PROMOTE = 2
BYTES_TO_PROMOTE = 32 * 1024**2


@dataclass(frozen=True)
class Proof:
    """What was seen on the held standby.

    :param received: it has the WAL up to the mark, as its receiver says; None when no receiver runs.
    """

    received: bool | None
    replayed_lsn: str
    received_lsn: str | None


def look_at_held(hook: ClusterHook, checkpoint: Checkpoint) -> Proof:
    """Prove by SQL that the mark is not visible on the held standby.

    :raises CheckpointLostError: when it is visible, or the member is no standby any more.
    :raises FailedForNowError: when the server gives no answer to rely on.
    """
    if checkpoint.xid is None or checkpoint.lsn is None:
        raise CheckpointLostError(f"checkpoint {checkpoint.id} has no mark; {LOST}")
    row = hook.sql_of(checkpoint, checkpoint.held).row("proof", xid=checkpoint.xid, lsn=checkpoint.lsn)
    if row["in_recovery"] is not True:
        raise CheckpointLostError(
            f"checkpoint {checkpoint.id} is lost: {checkpoint.held} is not a standby any more, so it has "
            f"applied everything it had received; {LOST}"
        )
    if row["mark_visible"] is None:
        raise FailedForNowError(f"{checkpoint.held} did not say whether the mark is visible there")
    if row["mark_visible"]:
        raise CheckpointLostError(
            f"checkpoint {checkpoint.id} is lost: {checkpoint.held} has replayed transaction {checkpoint.xid}, "
            f"the mark, and what came after it; {LOST}"
        )
    return Proof(row["received"], str(row["replayed_lsn"]), row["received_lsn"])


def prove_wal(node: NodeHook, checkpoint: Checkpoint, data_dir: str, found: DataDirectory) -> None:
    """Prove that the held member has all WAL from its last restart point to the mark, and the commit in it.

    :param found: the probe of its data directory.
    :raises CheckpointLostError: when WAL is missing, the commit is not there, or the files are past the mark.
    """
    version = ServerVersion(checkpoint.server_version_num)
    if checkpoint.xid is None or checkpoint.lsn is None or checkpoint.restore_point_lsn is None:
        raise CheckpointLostError(f"checkpoint {checkpoint.id} has no mark; {LOST}")
    if not was_standby(checkpoint, found):
        raise CheckpointLostError(
            f"checkpoint {checkpoint.id} is lost: the server of {node.where} was {found.control(STATE)!r}, and not as "
            f"the recovery to the mark leaves it; expected a standby's state, "
            f"{' or '.join(map(repr, sorted(STANDBY_STATES)))}; {LOST}"
        )
    redo = found.control("Latest checkpoint's REDO location")
    if parse_lsn(redo) >= parse_lsn(checkpoint.lsn):
        raise CheckpointLostError(
            f"checkpoint {checkpoint.id} is lost: the last restart point of {node.where} is at {redo}, past the "
            f"mark at {checkpoint.lsn}, so it has replayed the mark; {LOST}"
        )
    consistent = found.control("Minimum recovery ending location")
    if parse_lsn(consistent) > parse_lsn(checkpoint.lsn):
        raise CheckpointLostError(
            f"checkpoint {checkpoint.id} is lost: the data files of {node.where} hold changes up to {consistent}, past "
            f"the mark at {checkpoint.lsn}, and a recovery cannot end before them; {LOST}"
        )
    segment = int(found.control("Bytes per WAL segment"))
    missing = missing_segments(found.wal_names, redo, checkpoint.lsn, segment)
    if missing:
        raise CheckpointLostError(
            f"checkpoint {checkpoint.id} is lost: {node.where} lacks {len(missing)} WAL file(s) between {redo} and "
            f"the mark at {checkpoint.lsn}, the first ends in {missing[0]}; {LOST}"
        )
    timeline = checkpoint.timeline or 1
    files = [f"{timeline:08X}{part}" for part in segment_ids(checkpoint.restore_point_lsn, checkpoint.lsn, segment)]
    result = node.run(
        shell.waldump(
            found.bin_dir,
            version.waldump,
            f"{data_dir}/{version.wal_directory}",
            timeline=timeline,
            start=checkpoint.restore_point_lsn,
            end=checkpoint.lsn,
            files=list(dict.fromkeys((files[0], files[-1]))),
        )
    )
    if not commit_is_in(result.output, checkpoint.xid):
        said = " ".join(result.error.split())[:200] or "no COMMIT of it"
        if result.status and not speaks_of_wal(result.error):
            raise FailedForNowError(
                f"{node.where}: {version.waldump} ended with status {result.status} and said nothing about the WAL "
                f"({said}), so whether the commit of transaction {checkpoint.xid} is there is not known; "
                "expected it to read the WAL. Repair the program, then try again"
            )
        raise CheckpointLostError(
            f"checkpoint {checkpoint.id} is lost: the WAL of {node.where} between {checkpoint.restore_point_lsn} and "
            f"{checkpoint.lsn} does not hold the commit of transaction {checkpoint.xid} ({said}); {LOST}"
        )


def require_room(found: DataDirectory, where: str) -> None:
    """Prove that the held member's disks have room for the end of a recovery.

    :raises RefusedError: when one is too full.
    """
    needed = SEGMENTS_TO_PROMOTE * int(found.control("Bytes per WAL segment")) + BYTES_TO_PROMOTE
    for which in ("data", "wal"):
        device, _, free = found.disk(which)
        if free < needed:
            raise RefusedError(
                f"{where}: {device} ({which} directory) has {free / 1024**2:.0f} MiB free; expected at least "
                f"{needed / 1024**2:.0f} MiB, since the recovered server writes new WAL files there. Make room first, "
                "but leave pg_wal alone"
            )


def prove_identity(found: DataDirectory, checkpoint: Checkpoint, where: str) -> None:
    """Prove that a data directory is one of the checkpoint's cluster.

    :raises RefusedError: when it is another one's.
    """
    identifier = found.control("Database system identifier")
    if identifier != checkpoint.system_identifier:
        raise RefusedError(
            f"{where}: the data directory has the system identifier {identifier}, expected "
            f"{checkpoint.system_identifier}, the cluster of checkpoint {checkpoint.id}"
        )


def prove_held(hook: ClusterHook, checkpoint: Checkpoint, *, files: bool = False) -> Proof:
    """Prove the whole hold: the mark is not visible, and its WAL is on the held member.

    :param files: look into the WAL files in any case, as a rollback will: a position that was received says nothing of
        the timeline.
    :raises CheckpointLostError: when the state before the mark is gone.
    """
    proof = look_at_held(hook, checkpoint)
    if files or not proof.received:
        # After a restart the receiver stays off while replay waits (hazard H7): then the files are the proof.
        node = hook.node(checkpoint.held, checkpoint.members[checkpoint.held].ssh_host)
        config = node.state().config
        prove_wal(node, checkpoint, config.data_dir, node.data_directory(config))
    return proof
