"""When a recovered server counts as promoted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bluegreen.exceptions import FailedForNowError
from bluegreen.hooks.node import DataDirectory
from bluegreen.hooks.standalone import Standalone

LINE = "3\t0/58F55E8\tafter transaction 743\n"
HELD: Any = SimpleNamespace(id="bg_1", xid=(1 << 32) + 743, timeline=3, server_version_num=150010)
STATE: Any = SimpleNamespace(config=SimpleNamespace(data_dir="/data"))
NODE: Any = SimpleNamespace(where="n2")


def directory(*begun: int, on: str) -> DataDirectory:
    """A data directory with histories of these timelines from the mark, and pg_control on one."""
    control = f"Latest checkpoint's TimeLineID:       {on}\nMin recovery ending loc's timeline:   9\n"
    return DataDirectory({"controldata": control, **{f"history:{one:08X}.history": LINE for one in begun}})


@pytest.mark.parametrize(
    ("begun", "on", "promoted"),
    [
        ((), "3", None),
        ((4,), "3", None),
        ((4,), "4", 4),
        ((4,), "6", 4),
        ((4, 5), "3", None),
        ((4, 5), "4", None),
        ((4, 5), "5", 5),
        ((16,), "15", None),
        ((16,), "16", 16),
    ],
)
def test_a_history_file_alone_is_no_promotion(begun: tuple[int, ...], on: str, promoted: int | None) -> None:
    found = directory(*begun, on=on)
    held = Standalone(NODE, STATE, HELD)
    assert (held.promoted(found) or (None,))[0] == promoted
    assert (held.begun(found) or (None,))[0] == (begun[-1] if begun else None)


def test_a_timeline_that_is_no_number_proves_nothing() -> None:
    with pytest.raises(FailedForNowError, match="found 'four' as a timeline in pg_controldata, expected a number"):
        Standalone(NODE, STATE, HELD).promoted(directory(4, on="four"))
