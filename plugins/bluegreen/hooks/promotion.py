"""How far a recovery to the mark has come, by what lies in the data directory (hazards H3 and H5).

A server that has come to its target writes the history of its new timeline, removes the files of the recovery, and only
then makes the checkpoint that puts ``pg_control`` on that timeline. One that dies in between has a history that says it
was promoted, and would replay the old timeline past the mark if it were started as it is.

Source: ``StartupXLOG`` and ``CreateCheckPoint`` in ``src/backend/access/transam/xlog.c``: the latter first sets the
state to ``shutting down``.
"""

from __future__ import annotations

from bluegreen.checkpoint import Checkpoint
from bluegreen.exceptions import RefusedError
from bluegreen.hooks.node import DataDirectory
from bluegreen.hooks.stopping import cluster_state
from bluegreen.recovery.history import Branch, branch_at_mark, history_name, parse_history

STATE = "Database cluster state"
# what pg_control says of a server that was never more than a standby
STANDBY_STATES = frozenset({"in archive recovery", "shut down in recovery"})
ENDING_STATE = "shutting down"
# and of one that has gone on by itself: what it has written since belongs to no standby
ENDED_STATES = frozenset({"in production", "in crash recovery", ENDING_STATE, "shut down"})


def begun(checkpoint: Checkpoint, found: DataDirectory) -> tuple[int, Branch] | None:
    """Return the timeline that began at the mark, if there is one, also where the server never came to it.

    :raises RefusedError: the checkpoint has no mark.
    """
    if checkpoint.xid is None or checkpoint.timeline is None:
        raise RefusedError(f"checkpoint {checkpoint.id} has no mark")
    return branch_at_mark(found.histories, xid=checkpoint.xid, parent=checkpoint.timeline)


def promoted(checkpoint: Checkpoint, found: DataDirectory) -> tuple[int, Branch] | None:
    """Return the timeline that began at the mark, if the server has come to it, or to one that began there.

    :raises FailedForNowError: ``pg_controldata`` does not say.
    """
    branch = begun(checkpoint, found)
    if branch is None or found.control(STATE) in STANDBY_STATES:
        return None
    timeline = found.checkpoint_timeline
    own = parse_history(found.histories.get(history_name(timeline), ""))
    if branch[1] not in own:
        return None
    # each recovery that was cut short has left a history with the same line
    return (timeline, branch[1]) if own[-1] == branch[1] else branch


def cut_short(checkpoint: Checkpoint, found: DataDirectory) -> bool:
    """Tell whether a stopped server's last start was the recovery, which came to the mark and not to its checkpoint.

    Then nothing in it is from after the mark, and it can be recovered once more. A start as it is writes
    ``postmaster.opts`` anew, so that the history is the older one.
    """
    branch = begun(checkpoint, found)
    return branch is not None and not promoted(checkpoint, found) and history_name(branch[0]) in found.since_start


def was_standby(checkpoint: Checkpoint, found: DataDirectory) -> bool:
    """Tell whether no crash recovery has written pages from after the mark, of which ``pg_control`` has no position."""
    state = found.control(STATE)
    return state in STANDBY_STATES or (state == ENDING_STATE and cut_short(checkpoint, found))


def astray(checkpoint: Checkpoint, found: DataDirectory) -> bool:
    """Tell whether the held member's server has gone on by itself, elsewhere than at the mark."""
    has_ended = cluster_state(found) in ENDED_STATES
    return has_ended and not promoted(checkpoint, found) and not cut_short(checkpoint, found)
