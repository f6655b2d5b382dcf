"""What the monitor decides of figures that a lab on one disk cannot have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bluegreen.operators.monitor import _Look

FULL = "n1: /dev/sdb has 3.0 % free; the limit is 15 %"


@pytest.mark.parametrize(
    ("kept", "slots_are_known", "released"),
    [
        (200, True, True),
        (50, True, False),
        # it is lost, or was never there: nothing is kept back
        (None, True, False),
        (None, False, True),
    ],
)
def test_a_checkpoint_is_given_up_for_the_leaders_disk_only_where_its_hold_may_fill_it(
    kept: int | None, slots_are_known: bool, released: bool
) -> None:
    look = SimpleNamespace(
        held="n3",
        figures={"members": {"n1": {}, "n3": {"slot_wal_bytes": kept}}},
        leaders_disk=FULL,
        must_release="",
        slots_are_known=slots_are_known,
        limits=SimpleNamespace(lag_bytes=100),
    )
    _Look.leaders_disk_decides(look)  # type: ignore[arg-type]
    assert look.must_release == (FULL if released else "")
