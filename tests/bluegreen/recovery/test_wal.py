from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluegreen.exceptions import FailedForNowError
from bluegreen.recovery.wal import (
    commit_is_in,
    format_lsn,
    missing_segments,
    parse_lsn,
    segment_ids,
    speaks_of_wal,
)

MB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0/0", 0),
        ("0/40E0458", 0x40E0458),
        ("0/040E0458", 0x40E0458),
        ("1/0", 2**32),
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1),
        ("a/b", (10 << 32) + 11),
    ],
)
def test_an_lsn_is_a_number_of_bytes(text: str, position: int) -> None:
    assert parse_lsn(text) == position


@pytest.mark.parametrize(
    "text", [None, "", " ", "0", "/", "0/", "/0", "0/0 ", "0/0\n", "0x0/0", "0/123456789", "-1/0", "G/0", 0, 7, b"0/0"]
)
def test_what_is_no_lsn_fails_and_is_never_zero(text: object) -> None:
    with pytest.raises(FailedForNowError, match="LSN"):
        parse_lsn(text)


@given(st.integers(0, 2**64 - 1))
def test_a_position_survives_its_text(position: int) -> None:
    assert parse_lsn(format_lsn(position)) == position


def test_lsns_are_compared_as_numbers() -> None:
    assert parse_lsn("0/9000000") < parse_lsn("0/10000000") < parse_lsn("1/0")


@pytest.mark.parametrize(
    ("first", "last", "size", "expected"),
    [
        ("0/40E0458", "0/40E0459", 16 * MB, ["0000000000000004"]),
        ("0/3FFFFFF", "0/4000001", 16 * MB, ["0000000000000003", "0000000000000004"]),
        # An LSN at a boundary is the end of the file before it.
        ("0/3000028", "0/4000000", 16 * MB, ["0000000000000003"]),
        ("0/FF000000", "1/1", 16 * MB, ["00000000000000FF", "0000000100000000"]),
        ("0/FFF00000", "1/100000", MB, ["0000000000000FFF", "0000000100000000"]),
        ("0/FC000000", "1/4000001", 64 * MB, ["000000000000003F", "0000000100000000", "0000000100000001"]),
        ("0/C0000000", "1/1", 1024 * MB, ["0000000000000003", "0000000100000000"]),
    ],
)
def test_the_files_between_two_lsns(first: str, last: str, size: int, expected: list[str]) -> None:
    assert segment_ids(first, last, size) == expected


@given(
    st.sampled_from([MB, 16 * MB, 64 * MB, 1024 * MB]), st.integers(0, 2**40), st.integers(1, 40), st.integers(0, MB)
)
def test_the_files_follow_each_other_without_a_gap(size: int, start: int, count: int, rest: int) -> None:
    ids = segment_ids(format_lsn(start), format_lsn(start + count * size + rest), size)
    numbers = [int(text[:8], 16) * (2**32 // size) + int(text[8:], 16) for text in ids]
    assert numbers == list(range(start // size, (start + count * size + rest - 1) // size + 1))
    assert all(int(text[8:], 16) < 2**32 // size for text in ids)


@pytest.mark.parametrize("size", [0, -1, 3, 16 * MB - 1])
def test_a_size_that_no_wal_file_has_fails(size: int) -> None:
    with pytest.raises(FailedForNowError, match="power of two"):
        segment_ids("0/1", "0/2", size)


def test_a_range_that_runs_backwards_is_never_complete() -> None:
    with pytest.raises(FailedForNowError, match="smaller one first"):
        missing_segments([], "0/5000000", "0/4000000", 16 * MB)


def test_missing_files_are_found_whatever_their_timeline() -> None:
    names = ["000000010000000000000003", "000000020000000000000004", "00000002.history", "archive_status"]
    assert missing_segments(names, "0/3000028", "0/4000100", 16 * MB) == []
    assert missing_segments(names, "0/3000028", "0/5000100", 16 * MB) == ["0000000000000005"]


@pytest.mark.parametrize(
    "name",
    ["000000010000000000000004.partial", "000000010000000000000004.backup", "xlogtemp.1", "00000001000000000000000"],
)
def test_a_partial_file_is_not_there(name: str) -> None:
    assert missing_segments([name], "0/4000028", "0/4000100", 16 * MB) == ["0000000000000004"]


def test_an_empty_directory_lacks_everything() -> None:
    assert missing_segments([], "0/4000028", "0/4000100", 16 * MB) == ["0000000000000004"]


# From pg_waldump of PostgreSQL 15.
COMMIT = (
    "rmgr: Transaction len (rec/tot):     46/    46, tx:        747, lsn: 0/040E0428, prev 0/040E03F0, "
    "desc: COMMIT 2026-11-24 14:00:00.000000 UTC"
)


def test_the_commit_is_found() -> None:
    assert commit_is_in(COMMIT, 747)
    assert commit_is_in("first\n" + COMMIT + "\nlast\n", (9 << 32) + 747)


@pytest.mark.parametrize(
    "more", ["; inval msgs: catcache 7 catcache 6", "; subxacts: 748 749", "; rels: base/5/16384", "; dropped stats: x"]
)
def test_a_commit_with_more_in_it_is_one(more: str) -> None:
    assert commit_is_in(COMMIT + more, 747)


@pytest.mark.parametrize(
    "line",
    [
        "",
        COMMIT.replace("747", "7470"),
        COMMIT.replace("        747", "       1747"),
        COMMIT.replace("COMMIT", "ABORT"),
        COMMIT.replace("COMMIT", "COMMIT_PREPARED"),
        COMMIT.replace("COMMIT", "PREPARE"),
        COMMIT.replace("COMMIT 2026-11-24 14:00:00.000000 UTC", "ASSIGNMENT xtop 747: subxacts: 748"),
        COMMIT.replace("747", "740") + "; subxacts: 747",
        COMMIT.replace("tx:        747", "tx:          0").replace("prev 0/040E03F0", "prev 0/00000747"),
        "pg_waldump: error: could not find a valid record after 0/40E0428: tx: 747, COMMIT",
    ],
)
def test_nothing_else_is_taken_for_the_commit(line: str) -> None:
    assert not commit_is_in(line, 747)


def test_a_commit_is_not_put_together_from_two_lines() -> None:
    first, second = COMMIT.split("lsn:")
    assert not commit_is_in(first + "\n" + second, 747)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        ("pg_waldump: error: could not find a valid record after 0/40E0428", True),
        (
            "pg_waldump: error: error in WAL record at 0/54B00F8: invalid record length at 0/54B0170: wanted 24, got 0",
            True,
        ),
        ('pg_waldump: error: could not locate WAL file "000000010000000000000001"', True),
        ('pg_waldump: fatal: could not find file "00000002000000000000000A": No such file or directory', True),
        ("pg_xlogdump: FATAL:  could not find a valid record after 0/40E0428", True),
        ("sh: 3: /usr/lib/postgresql/15/bin/pg_waldump: not found", False),
        ("broken", False),
        ("", False),
        ("error while loading shared libraries: liblz4.so.1: cannot open shared object file", False),
    ],
)
def test_a_program_that_fails_for_its_own_reasons_says_nothing_of_the_wal(error: str, wanted: bool) -> None:
    assert speaks_of_wal(error) is wanted
