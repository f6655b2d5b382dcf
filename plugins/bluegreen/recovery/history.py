"""Timeline history files: the only proof of where a promotion happened that cannot lie.

Source: ``src/backend/access/transam/timeline.c`` (``writeTimeLineHistory``): each line is
``parent timeline <TAB> switch point <TAB> reason``; the reason after a recovery to a transaction
reads ``after transaction 747``, with the transaction id's lower 32 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bluegreen.exceptions import FailedForNowError

_NAME = re.compile(r"([0-9A-F]{8})\.history\Z")
_LINE = re.compile(r"(\d+)\s+([0-9A-F]+/[0-9A-F]+)\s*(.*)\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Branch:
    """One line of a history file: from which timeline, where and why a new one began."""

    parent: int
    lsn: str
    reason: str

    @property
    def line(self) -> str:
        """The line as PostgreSQL writes it."""
        return f"{self.parent}\t{self.lsn}\t{self.reason}"


def parse_history(text: str) -> list[Branch]:
    """Return the branches of a history file, oldest first.

    :raises FailedForNowError: when a line is not one that PostgreSQL writes.
    """
    branches = []
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        found = _LINE.match(line)
        if not found:
            raise FailedForNowError(f"found {line[:80]!r} in a timeline history file, expected three columns")
        branches.append(Branch(int(found[1]), found[2], found[3].strip()))
    return branches


def history_name(timeline: int) -> str:
    """Return the file name of a timeline's history."""
    return f"{timeline:08X}.history"


def is_history_name(name: str) -> bool:
    """Tell whether a file name is that of a history file (the names come from a node)."""
    return bool(_NAME.match(name))


def branch_at_mark(histories: Mapping[str, str], *, xid: int, parent: int) -> tuple[int, Branch] | None:
    """Find the timeline that began right after the mark's transaction.

    :param histories: file name to text, as found in ``pg_wal``.
    :param xid: the mark's transaction id, 64 bits.
    :param parent: the timeline on which the mark was taken.
    :return: the newest such timeline and its last line, or None.
    """
    wanted = f"after transaction {xid & 0xFFFFFFFF}"
    for name in sorted(histories, reverse=True):
        found = _NAME.match(name)
        branches = parse_history(histories[name]) if found else []
        if found and branches and branches[-1].parent == parent and branches[-1].reason == wanted:
            return int(found[1], 16), branches[-1]
    return None


def contains_branch(text: str, branch: Branch) -> bool:
    """Tell whether a member's history has the proven line; numbers alone prove nothing (hazard H5)."""
    return branch in parse_history(text)
