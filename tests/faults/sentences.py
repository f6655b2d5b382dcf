"""What a report's sentences claim, and whether the cluster bears them out."""

from __future__ import annotations

import re
from collections.abc import Iterator

BEFORE, AFTER, NEITHER = "before", "after", ""
WHERE_IT_WAS = frozenset({BEFORE})
NOT_DONE = frozenset({BEFORE, NEITHER})
HALF_WAY = frozenset({NEITHER})
ANY = frozenset({BEFORE, AFTER, NEITHER})
AGAIN = "run bluegreen_rollback again"

# for each sentence in which a failure tells the state of the cluster: the states in which it is true
CLAIMS: dict[str, dict[str, frozenset[str]]] = {
    "checkpoint": {
        r"Nothing was changed\.$": WHERE_IT_WAS,
        r"was released first\. No checkpoint was taken, so do not deploy\.$": WHERE_IT_WAS,
        r"The hold was released again; there is no checkpoint, so do not deploy\.$": WHERE_IT_WAS,
        r"Nothing is held; there is no checkpoint, so do not deploy\.$": WHERE_IT_WAS,
        r"There is no proven checkpoint, so do not deploy\. A hold may be left: .* bluegreen_resume\.$": NOT_DONE,
        r"Checkpoint \w+, which this run took before it was cleared, is still held\.$": frozenset({AFTER}),
        r"This run took no checkpoint, so do not deploy; checkpoint \w+ is another run's\.$": ANY,
    },
    "resume": {
        r"Nothing was changed\.$": WHERE_IT_WAS,
        r"The standby may still be held or catching up\. Run bluegreen_resume again\.$": ANY,
    },
    "rollback": {
        r"Nothing was changed\.$": WHERE_IT_WAS,
        rf"The old cluster was not touched; the checkpoint is still held\. .*{AGAIN}\.$": WHERE_IT_WAS,
        rf"The old cluster is in service, .* still held\. .*{AGAIN}\.$": WHERE_IT_WAS,
        rf"Nothing was touched, and no checkpoint is held\. .*{AGAIN}": ANY,
        rf"put back into service, .* still held, and was proven again\. .*{AGAIN}\.$": WHERE_IT_WAS,
        r"put back into service, .*; but checkpoint \S+ is lost: .*\. Run bluegreen_resume to let the": WHERE_IT_WAS,
        rf"put back into service, .*; but \S+, the held member, .*{AGAIN}": NOT_DONE,
        rf"Putting the old cluster back into service .*The cluster may serve nobody: .*{AGAIN}": NOT_DONE,
        rf"does not hold the cluster's lock, so it put nothing back\. .*{AGAIN}\.$": NOT_DONE,
        rf"\S+ is promoted at the mark: there is only forward, .*{AGAIN} with the same params": HALF_WAY,
    },
}
# a refusal is about what was asked, or about what was found, and names what is to be done in its own words
WHAT_TO_DO = re.compile(
    r"[Ee]xpected|take a new one|[Rr]un (this|the DAG|bluegreen_\w+|`)|Wait (for|until)|so do not deploy"
)


def contradictions(
    operation: str, message: str, state: str, *, promoted: bool | None = None, held: str = ""
) -> Iterator[str]:
    """What a failure's message says of the cluster and the cluster does not show, and what it leaves out.

    :param state: `before`, `after`, or an empty text for neither.
    :param promoted: whether a member has the history line of the promotion at the mark; None where nobody looked.
    :param held: the held member's name, which a report of a promotion must give.
    """
    claimed = [states for claim, states in CLAIMS[operation].items() if re.search(claim, message)]
    if len(claimed) != 1:
        yield f"the report says {len(claimed)} things about the cluster's state, expected one: {message!r}"
    if not all(state in states for states in claimed):
        yield f"the report is not true of a cluster that is {state or 'neither before nor after'}: {message!r}"
    if not WHAT_TO_DO.search(message):
        yield f"the report does not say what to do: {message!r}"
    if operation != "rollback" or promoted is None:
        return
    if ("there is only forward" in message and not promoted) or ("Nobody is promoted" in message and promoted):
        yield f"the history of the members says promoted = {promoted}, and the report otherwise: {message!r}"
    if promoted and state == NEITHER and f"{held} is promoted at the mark" not in message:
        yield f"{held} is promoted at the mark, and the report does not say so: {message!r}"
