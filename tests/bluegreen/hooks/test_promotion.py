"""When a recovered server counts as promoted, and when it can be recovered once more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bluegreen.exceptions import FailedForNowError
from bluegreen.hooks.node import DataDirectory
from bluegreen.hooks.promotion import astray, begun, cut_short, promoted, was_standby

LINE = "3\t0/58F55E8\tafter transaction 743\n"
FAILED_OVER = LINE + "4\t0/6000000\tno recovery target specified\n"
HELD: Any = SimpleNamespace(id="bg_1", xid=(1 << 32) + 743, timeline=3, server_version_num=150010)


def directory(
    histories: dict[int, str] | tuple[int, ...], *, on: str, state: str = "in production", newer: tuple[int, ...] = ()
) -> DataDirectory:
    """A data directory with histories of these timelines, by default from the mark, and pg_control on one."""
    texts = histories if isinstance(histories, dict) else dict.fromkeys(histories, LINE)
    control = (
        f"Database cluster state:               {state}\nLatest checkpoint's TimeLineID:       {on}\n"
        "Min recovery ending loc's timeline:   9\n"
    )
    return DataDirectory(
        {
            "controldata": control,
            "since_start": "\n".join(f"{one:08X}.history" for one in newer),
            **{f"history:{one:08X}.history": text for one, text in texts.items()},
        }
    )


@pytest.mark.parametrize(
    ("histories", "on", "expected"),
    [
        ((), "3", None),
        ((4,), "3", None),
        ((4,), "4", 4),
        ({4: LINE, 5: FAILED_OVER}, "5", 4),
        # another timeline of a higher number, which did not begin at the mark
        ({4: LINE, 5: "3\t0/7000000\tno recovery target specified\n"}, "5", None),
        ((4,), "5", None),
        ((4, 5), "3", None),
        ((4, 5), "4", 4),
        ((4, 5), "5", 5),
        ((16,), "15", None),
        ((16,), "16", 16),
    ],
)
def test_a_history_file_alone_is_no_promotion(
    histories: dict[int, str] | tuple[int, ...], on: str, expected: int | None
) -> None:
    found = directory(histories, on=on)
    assert (promoted(HELD, found) or (None,))[0] == expected
    assert bool(begun(HELD, found)) == bool(histories)


@pytest.mark.parametrize("state", ["in archive recovery", "shut down in recovery"])
def test_a_standby_is_not_promoted_whatever_timeline_it_follows(state: str) -> None:
    assert promoted(HELD, directory((4,), on="4", state=state)) is None


def test_a_timeline_that_is_no_number_proves_nothing() -> None:
    with pytest.raises(FailedForNowError, match="found 'four' as a timeline in pg_controldata, expected a number"):
        promoted(HELD, directory((4,), on="four"))


@pytest.mark.parametrize(
    ("state", "newer", "again", "lost"),
    [
        # killed before the checkpoint began, and while it was made
        ("in archive recovery", (4,), True, False),
        ("shutting down", (4,), True, False),
        # the checkpoint that ends a crash recovery past the mark looks the same, but for its start
        ("shutting down", (), False, True),
        ("in crash recovery", (), False, True),
        ("in crash recovery", (4,), False, False),
        ("in production", (), False, True),
        ("shut down", (), False, True),
    ],
)
def test_what_was_cut_short_is_recovered_once_more(state: str, newer: tuple[int, ...], again: bool, lost: bool) -> None:
    found = directory((4,), on="3", state=state, newer=newer)
    assert was_standby(HELD, found) == again
    assert astray(HELD, found) == lost
    assert cut_short(HELD, found) == bool(newer)


def test_a_standby_that_never_recovered_is_one() -> None:
    for state in ("in archive recovery", "shut down in recovery"):
        found = directory((), on="3", state=state)
        assert was_standby(HELD, found) and not astray(HELD, found) and not cut_short(HELD, found)
