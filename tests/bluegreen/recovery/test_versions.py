from __future__ import annotations

import pytest

from bluegreen.exceptions import RefusedError
from bluegreen.recovery.versions import HoldMechanism, ServerVersion

ALL = [90624, 100023, 110022, 120022, 130023, 140020, 150018, 160014, 170010, 180001]


def _since(name: str) -> list[int]:
    return [num for num in ALL if getattr(ServerVersion(num), name)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("has_recovery_conf", [90624, 100023, 110022]),
        ("reports_missing_target", [130023, 140020, 150018, 160014, 170010, 180001]),
        ("has_archive_library", [150018, 160014, 170010, 180001]),
        ("has_wal_keep_size", [130023, 140020, 150018, 160014, 170010, 180001]),
        ("rewind_needs_superuser", [90624, 100023]),
        ("rewind_skips_version_files", [90624, 100023, 110022, 120022, 130023]),
        ("rewind_recovers_first", [130023, 140020, 150018, 160014, 170010, 180001]),
    ],
)
def test_what_differs_by_version(name: str, expected: list[int]) -> None:
    assert _since(name) == expected


def test_a_rewind_overlooks_standbys_in_old_minor_releases() -> None:
    for fixed in (90621, 100016, 110011, 120006, 130002):
        assert ServerVersion(fixed - 1).rewind_overlooks_standbys
        assert not ServerVersion(fixed).rewind_overlooks_standbys
    assert not [num for num in ALL if ServerVersion(num).rewind_overlooks_standbys]
    assert not ServerVersion(140000).rewind_overlooks_standbys


def test_wal_was_called_xlog_before_10() -> None:
    assert (ServerVersion(90624).wal_directory, ServerVersion(90624).waldump) == ("pg_xlog", "pg_xlogdump")
    for num in ALL[1:]:
        assert (ServerVersion(num).wal_directory, ServerVersion(num).waldump) == ("pg_wal", "pg_waldump")


def test_a_pause_holds_before_12_and_a_delay_from_12_on() -> None:
    held = {num: ServerVersion(num).hold_mechanism for num in ALL}
    assert [num for num in ALL if held[num] is HoldMechanism.REPLAY_PAUSE] == [90624, 100023, 110022]
    assert [num for num in ALL if held[num] is HoldMechanism.APPLY_DELAY] == ALL[3:]


@pytest.mark.parametrize(("num", "major"), [(90600, 9.6), (90624, 9.6), (100000, 10), (150018, 15), (180001, 18)])
def test_the_major_version(num: int, major: float) -> None:
    assert ServerVersion(num).major == major


@pytest.mark.parametrize("num", [0, -1, 90523, 90599, 190000, 10**9])
def test_a_version_that_is_not_known_is_refused(num: int) -> None:
    with pytest.raises(RefusedError, match=r"expected 9\.6 to 18"):
        ServerVersion(num)
