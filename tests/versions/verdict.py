"""The verdict of tests/cluster, on servers and layouts that say the same in another way.

Before PostgreSQL 12 `recovery.conf` is what `standby.signal` is from then on. Slots that Patroni's configuration
calls permanent belong to somebody, and so does the DCS's note of who is synchronous. A Patroni configuration that is
a folder is compared file by file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lab.cluster import Lab
from tests.cluster import verdict as cluster
from tests.cluster.verdict import Picture

look_at_cluster = cluster.look
read_file = cluster._file


def look(lab: Lab) -> Picture:
    """Take a picture of the whole cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "_file", read_file_or_folder)
        picture = look_at_cluster(lab)
    permanent = set(picture.config.get("slots") or {})
    for name, one in picture.members.items():
        if (lab.nodes[name].data_dir / "recovery.conf").exists():
            one.signals |= {"standby.signal"}
        one.slots = [slot for slot in one.slots if slot not in permanent]
    picture.dcs.pop("sync", None)
    if status := json.loads(picture.dcs.get("status") or "{}"):
        status["slots"] = {name: lsn for name, lsn in (status.get("slots") or {}).items() if name not in permanent}
        picture.dcs["status"] = json.dumps(status)
    return picture


def read_file_or_folder(path: Path) -> Any:
    """A file's content, mode and owner; of a folder, those of all its files by name."""
    if not path.is_dir():
        return read_file(path)
    return {one.name: read_file(one) for one in sorted(path.iterdir())}


def verdict(lab: Lab, **expected: Any) -> Picture:
    """Raise unless the whole cluster is as expected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "look", look)
        return cluster.verdict(lab, **expected)
