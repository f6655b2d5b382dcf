from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluegreen.exceptions import FailedForNowError
from bluegreen.recovery.history import (
    Branch,
    branch_at_mark,
    contains_branch,
    history_name,
    is_history_name,
    parse_history,
)

# As PostgreSQL 15 and 17 wrote them.
FAILOVER = "1\t0/50000A0\tno recovery target specified\n"
AT_MARK = "1\t0/40E0458\tafter transaction 747\n"
SECOND = FAILOVER + "\n2\t0/7000110\tafter transaction 801\n"


def test_the_last_line_says_where_and_why_a_timeline_began() -> None:
    (branch,) = parse_history(AT_MARK)
    assert branch == Branch(1, "0/40E0458", "after transaction 747")
    assert branch.line == "1\t0/40E0458\tafter transaction 747"


def test_every_branch_is_read_oldest_first() -> None:
    assert [branch.parent for branch in parse_history(SECOND)] == [1, 2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('1\t0/3000060\tat restore point "bluegreen_bg_1"', 'at restore point "bluegreen_bg_1"'),
        ("1\t0/3000060\tbefore 2026-11-24 14:00:00.123+00", "before 2026-11-24 14:00:00.123+00"),
        ("1\t0/3000060\tafter LSN 0/3000060", "after LSN 0/3000060"),
        ("1\tA0/FF\tno recovery target specified", "no recovery target specified"),
        ("1\t0/3000060\t", ""),
        ("1\t0/3000060", ""),
    ],
)
def test_other_reasons_are_read_too(line: str, reason: str) -> None:
    assert parse_history(line + "\n")[0].reason == reason


def test_comments_and_empty_lines_are_left_out() -> None:
    assert parse_history("# a comment\n\n  \n" + AT_MARK) == parse_history(AT_MARK)


@pytest.mark.parametrize("text", ["garbage", "1", "1\t0", "1\t\t", "x\t0/1\ty", "\x00\x00", "-1\t0/1\tx", "1 0/G x"])
def test_a_line_that_postgresql_does_not_write_fails(text: str) -> None:
    with pytest.raises(FailedForNowError, match="timeline history file"):
        parse_history(text)


@given(st.text(max_size=60))
def test_any_text_is_a_history_or_fails_for_now(text: str) -> None:
    with contextlib.suppress(FailedForNowError):
        parse_history(text)


@pytest.mark.parametrize(("timeline", "name"), [(1, "00000001.history"), (26, "0000001A.history")])
def test_names(timeline: int, name: str) -> None:
    assert history_name(timeline) == name and is_history_name(name)


@pytest.mark.parametrize(
    "name", ["1.history", "00000001.history.tmp", "../00000001.history", "0000000a.history", "00000001.history\n", ""]
)
def test_what_is_no_history_name(name: str) -> None:
    assert not is_history_name(name)


def _at_mark(histories: dict[str, str], xid: int = 747, parent: int = 1) -> int | None:
    found = branch_at_mark(histories, xid=xid, parent=parent)
    return found[0] if found else None


def test_the_timeline_that_began_at_the_mark_is_found() -> None:
    assert branch_at_mark({"00000002.history": AT_MARK}, xid=747, parent=1) == (
        2,
        Branch(1, "0/40E0458", "after transaction 747"),
    )


def test_the_mark_is_compared_by_its_lower_32_bits() -> None:
    assert _at_mark({"00000002.history": AT_MARK}, xid=(5 << 32) + 747) == 2


@pytest.mark.parametrize(
    "histories",
    [
        {},
        {"00000002.history": FAILOVER},
        {"00000002.history": "1\t0/40E0458\tafter transaction 7470\n"},
        {"00000002.history": "1\t0/40E0458\tafter transaction 74\n"},
        {"00000002.history": "1\t0/40E0458\tbefore transaction 747\n"},
        {"00000002.history": "2\t0/40E0458\tafter transaction 747\n"},
        {"00000002.history.bak": AT_MARK},
        {"00000002.history": ""},
    ],
)
def test_nothing_else_is_taken_for_the_mark(histories: dict[str, str]) -> None:
    assert _at_mark(histories) is None


def test_a_later_failover_from_the_recovered_timeline_is_not_the_branch_itself() -> None:
    later = AT_MARK + "3\t0/6000000\tno recovery target specified\n"
    assert _at_mark({"00000003.history": AT_MARK, "00000004.history": later}) == 3


def test_of_two_recoveries_to_the_mark_the_newest_counts() -> None:
    assert _at_mark({"00000003.history": AT_MARK, "00000010.history": AT_MARK}) == 16


def test_a_damaged_history_is_never_no_branch() -> None:
    with pytest.raises(FailedForNowError):
        branch_at_mark({"00000003.history": "garbage", "00000002.history": AT_MARK}, xid=747, parent=1)


def test_a_member_is_on_the_new_branch_by_the_text_and_not_by_the_number() -> None:
    branch = parse_history(AT_MARK)[0]
    assert contains_branch(AT_MARK, branch)
    assert contains_branch(AT_MARK + "2\t0/9000000\tno recovery target specified\n", branch)
    assert not contains_branch(FAILOVER, branch)
    assert not contains_branch("1\t0/40E0458\tno recovery target specified\n", branch)
    assert not contains_branch("", branch)
