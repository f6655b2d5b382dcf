"""Positions in the WAL and the names of the files that hold them.

Source: PostgreSQL documentation, "WAL Internals" and ``src/include/access/xlog_internal.h``.
"""

from __future__ import annotations

import re

from bluegreen.exceptions import FailedForNowError

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")
_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})\Z")


def parse_lsn(text: object) -> int:
    """Return an LSN such as ``0/40E0458`` as a number of bytes.

    :raises FailedForNowError: when the text is missing or is no LSN; a missing position is never 0.
    """
    found = _LSN.match(text) if isinstance(text, str) else None
    if not found:
        raise FailedForNowError(f"found {str(text)[:60]!r} where an LSN such as 0/40E0458 was expected")
    return (int(found[1], 16) << 32) | int(found[2], 16)


def format_lsn(position: int) -> str:
    """Return a number of bytes as an LSN."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def segment_ids(first_lsn: str, last_lsn: str, segment_bytes: int) -> list[str]:
    """Return the last 16 digits of every WAL file name from one LSN to another, both included.

    The first 8 digits are the timeline, which may change on the way, so they are left out.

    :param segment_bytes: size of a WAL file in bytes, from ``pg_controldata``.
    :raises FailedForNowError: for a size that is none, and for LSNs in the wrong order.
    """
    if segment_bytes <= 0 or segment_bytes & (segment_bytes - 1):
        raise FailedForNowError(f"found {segment_bytes} as the size of a WAL file, expected a power of two")
    per_id = 0x100000000 // segment_bytes
    if parse_lsn(first_lsn) > parse_lsn(last_lsn):
        raise FailedForNowError(f"found {first_lsn} to {last_lsn} as a range of LSNs, expected the smaller one first")
    first = parse_lsn(first_lsn) // segment_bytes
    last = max(parse_lsn(last_lsn) - 1, 0) // segment_bytes
    return [f"{number // per_id:08X}{number % per_id:08X}" for number in range(first, last + 1)]


def missing_segments(names: list[str], first_lsn: str, last_lsn: str, segment_bytes: int) -> list[str]:
    """Return which WAL files between two LSNs are absent from a listing of ``pg_wal``."""
    present = {found[2] + found[3] for name in names if (found := _SEGMENT.match(name))}
    return [wanted for wanted in segment_ids(first_lsn, last_lsn, segment_bytes) if wanted not in present]


def commit_is_in(waldump: str, xid: int) -> bool:
    """Tell whether the output of ``pg_waldump --rmgr=Transaction`` holds the COMMIT of a transaction.

    :param xid: the transaction id; only its lower 32 bits are in the WAL.
    """
    wanted = re.compile(rf"\btx:\s*{xid & 0xFFFFFFFF},.*\bdesc: COMMIT\b")
    return any(wanted.search(line) for line in waldump.splitlines())


def speaks_of_wal(error: str) -> bool:
    """Tell whether ``pg_waldump`` failed over what it read, and not for a reason of its own.

    :param error: what it printed on standard error. Source: the messages in ``src/bin/pg_waldump/pg_waldump.c``.
    """
    return bool(re.search(r"WAL|valid record|could not (?:find|open|read|locate|seek).* file", error))
