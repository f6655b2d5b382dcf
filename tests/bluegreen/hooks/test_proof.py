"""What the held member's files must show before anybody is stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bluegreen.exceptions import CheckpointLostError, RefusedError
from bluegreen.hooks.node import DataDirectory
from bluegreen.hooks.proof import prove_wal, require_room

MIB = 1024**2


def directory(
    *,
    segment: int = 16 * MIB,
    consistent: str = "0/0",
    state: str = "shut down in recovery",
    free: dict[str, int] | None = None,
) -> DataDirectory:
    free = {"data": 1024 * MIB, "wal": 1024 * MIB, **(free or {})}
    control = (
        f"Database cluster state:               {state}\n"
        f"Latest checkpoint's REDO location:    0/5000028\nMinimum recovery ending location:     {consistent}\n"
        f"Bytes per WAL segment:                {segment}\n"
    )
    disks = {f"{which}_disk": f"/dev/{which} {4096 * MIB} 0 {size // 1024} 0% /" for which, size in free.items()}
    return DataDirectory({"controldata": control, "wal_names": "", **disks})


@pytest.mark.parametrize("which", ["data", "wal"])
def test_the_end_of_a_recovery_needs_room(which: str) -> None:
    require_room(directory(free={which: 64 * MIB}), "n2")
    with pytest.raises(
        RefusedError, match=rf"n2: /dev/{which} \({which} directory\) has 63 MiB free.* at least 64 MiB"
    ):
        require_room(directory(free={which: 63 * MIB}), "n2")


def test_larger_wal_files_need_more_room() -> None:
    with pytest.raises(RefusedError, match="at least 2080 MiB"):
        require_room(directory(segment=1024 * MIB), "n2")


@pytest.mark.parametrize(
    ("consistent", "said"),
    [("0/0", "lacks 1 WAL file"), ("0/58F55E8", "lacks 1 WAL file"), ("0/58F55F0", "past the mark at 0/58F55E8")],
)
def test_files_that_hold_more_than_the_mark_cannot_be_recovered_to_it(consistent: str, said: str) -> None:
    checkpoint: Any = SimpleNamespace(
        id="bg_1", xid=743, lsn="0/58F55E8", restore_point_lsn="0/58F55A0", server_version_num=150010, timeline=3
    )
    node: Any = SimpleNamespace(where="n2")
    with pytest.raises(CheckpointLostError, match=said):
        prove_wal(node, checkpoint, "/data", directory(consistent=consistent))


@pytest.mark.parametrize(
    "state", ["in crash recovery", "in production", "shutting down", "shut down", "starting up", ""]
)
def test_a_server_that_was_more_than_a_standby_holds_nothing(state: str) -> None:
    checkpoint: Any = SimpleNamespace(
        id="bg_1", xid=743, lsn="0/58F55E8", restore_point_lsn="0/58F55A0", server_version_num=150010, timeline=3
    )
    node: Any = SimpleNamespace(where="n2")
    with pytest.raises(CheckpointLostError, match=rf"the server of n2 was '{state}', and not as"):
        prove_wal(node, checkpoint, "/data", directory(state=state))
