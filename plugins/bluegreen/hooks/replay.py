"""Whether a standby that was released goes on replaying, and whether the WAL that it needs is still there (H7)."""

from __future__ import annotations

import logging

from bluegreen.checkpoint import Checkpoint
from bluegreen.exceptions import FailedForNowError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.waiting import wait_until
from bluegreen.recovery.wal import format_lsn, missing_segments, parse_lsn

STANDS_STILL_SECONDS = 10
AFTER_RESTART_SECONDS = 60

log = logging.getLogger(__name__)


def replay_position(hook: ClusterHook, checkpoint: Checkpoint) -> tuple[int, int | None]:
    """Return up to where the held member has replayed and received.

    :return: None as received where nothing was streamed since its start, which says nothing about its WAL folder.
    :raises FailedForNowError: when the server does not say.
    """
    row = hook.sql_of(checkpoint, checkpoint.held).row("replay_delay")
    received = row["received_lsn"]
    return parse_lsn(row["replayed_lsn"]), None if received is None else parse_lsn(received)


def set_replay_going(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, since: int) -> list[str]:
    """See that a released standby replays again; where it does not, have Patroni restart its PostgreSQL.

    A server older than the minor releases of autumn 2021 reckons the end of its wait once: one that waits in the
    apply delay is not woken by the reload that lifts it. PostgreSQL 13.4 stayed where it was until it was restarted.

    :param since: where it stood before the release.
    :return: a warning where it had to be restarted, or where a restart would not help.
    :raises FailedForNowError: when it stands still even so.
    """

    def goes_on() -> None:
        position, received = replay_position(hook, checkpoint)
        if position <= since and (received is None or position < received):
            raise FailedForNowError(
                f"{checkpoint.held} was released, but its replay still stands at {format_lsn(position)}; expected it "
                "to go on. Look at its server log: a query there may be in the way of replay"
            )

    try:
        wait_until(goes_on, seconds=STANDS_STILL_SECONDS)
    except FailedForNowError as error:
        if gone := why_wal_is_gone(hook, survey, checkpoint):
            return [gone]
        log.warning("%s. Restarting its PostgreSQL", error)
    else:
        return []
    hook.patroni.restart(checkpoint.members[checkpoint.held].api_url)
    wait_until(goes_on, seconds=AFTER_RESTART_SECONDS)
    return [
        f"{checkpoint.held}: its PostgreSQL was restarted, since it did not go on replaying within "
        f"{STANDS_STILL_SECONDS} s of its release; its connections were closed"
    ]


def why_wal_is_gone(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> str:
    """Return why the held member cannot go on by streaming; an empty text where it may, or where nobody says.

    A leader that keeps no slot, or has lost it (``max_slot_wal_keep_size``), removes WAL that a held standby has
    not received. One that receives WAL, or gets it from another replica, is left alone.
    """
    try:
        return _gone(hook, survey, checkpoint)
    except FailedForNowError as error:
        log.warning("whether the WAL is gone is not known: %s", error)
        return ""


def _gone(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> str:
    topology = hook.patroni.topology()
    leader, held = topology.leader, checkpoint.held
    member = next((known for known in topology.members if known.name == held), None)
    if member is None or member.is_leader or member.tags.get("replicatefrom") or leader.name not in survey.states:
        return ""
    if any(row["application_name"] == held for row in hook.replication(topology)):
        return ""
    replayed, received = replay_position(hook, checkpoint)
    position = format_lsn(replayed)
    found = hook.nodes[leader.name].data_directory(survey.states[leader.name].config)
    segment = int(found.control("Bytes per WAL segment"))
    if received is not None and received - replayed >= segment:
        # It has WAL of its own to replay, which it does not ask for: something else is in its way.
        return ""
    # the byte that it asks for next: at the end of a file that is in the next one
    if not missing_segments(found.wal_names, position, format_lsn(replayed + 1), segment):
        return ""
    return f"{leader.name} no longer has the WAL that {held} needs from {position} on"
