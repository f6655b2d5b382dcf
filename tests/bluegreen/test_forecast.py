"""When a disk is full: two looks at the same device, not too far apart."""

from __future__ import annotations

import pytest

from bluegreen.forecast import Disk, seconds_until_full

NOW = Disk("/dev/sda1", size_bytes=1000, free_bytes=400, at=10_000.0)


def _earlier(seconds: float, free: object = 460, device: str = "/dev/sda1") -> dict[str, object]:
    return {"device": device, "free_bytes": free, "at": NOW.at - seconds}


def test_it_goes_on_filling_as_it_did_since_the_earlier_look() -> None:
    assert seconds_until_full(_earlier(60), NOW) == 400


def test_free_space_is_told_in_percent() -> None:
    assert NOW.free_percent == 40
    assert Disk("none", size_bytes=0, free_bytes=0, at=0).free_percent == 0


@pytest.mark.parametrize(
    "earlier",
    [
        None,
        {},
        _earlier(60, device="/dev/sdb1"),
        _earlier(60, free="460"),
        _earlier(60, free=400),
        _earlier(60, free=300),
        _earlier(4),
        _earlier(-60),
        _earlier(86_400),
    ],
    ids=["none", "empty", "another device", "no number", "steady", "emptier", "too soon", "from the future", "too old"],
)
def test_without_a_look_to_compare_with_nothing_is_foretold(earlier: dict[str, object] | None) -> None:
    assert seconds_until_full(earlier, NOW) is None
