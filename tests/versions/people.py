"""What the people who run a cluster have done to it before this project comes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.cluster import Lab
from tests.cluster.scene import Scene, wait_for
from tests.versions.verdict import look


def configure(lab: Lab, patch: dict[str, Any]) -> None:
    """Change the dynamic configuration."""
    answer = lab.http.patch(f"{lab.nodes[lab.wait_leader()].rest}/config", json=patch, timeout=10)
    assert answer.status_code == 200, answer.text


def edit_yaml(lab: Lab, name: str, old: str, new: str) -> None:
    """Edit a member's Patroni YAML, once."""
    path = lab.nodes[name].patroni_config
    text = path.read_text()
    assert text.count(old) == 1, (old, text)
    path.write_text(text.replace(old, new))


def reload(lab: Lab, name: str) -> None:
    """Have Patroni read its YAML again."""
    lab.http.post(f"{lab.nodes[name].rest}/reload", timeout=10).raise_for_status()


def while_down(lab: Lab, change: Callable[[str], None]) -> None:
    """Stop the whole cluster, change something on every member, start it again."""
    leader = lab.wait_leader()
    lab.stop_patroni(*(name for name in lab.names if name != leader))
    lab.stop_patroni(leader)
    for name in lab.names:
        change(name)
    lab.start_patroni(leader)
    lab.wait_leader(60)
    lab.start_patroni(*lab.names)
    lab.wait_healthy(90)


def owned(path: Path, like: Path) -> None:
    """Give a path, and all in it, to whom another one belongs."""
    owner = like.stat()
    for one in (path, *path.rglob("*")):
        os.chown(one, owner.st_uid, owner.st_gid, follow_symlinks=False)


def move_behind_link(link: Path, target: Path) -> None:
    """Move a directory elsewhere and leave a link."""
    shutil.move(link, target)
    link.symlink_to(target)
    os.chown(link, target.stat().st_uid, target.stat().st_gid, follow_symlinks=False)


def synchronous(lab: Lab) -> list[str]:
    """The members that Patroni calls synchronous."""
    return [one["name"] for one in lab.cluster()["members"] if one["role"] in ("sync_standby", "quorum_standby")]


def wait_synchronous(lab: Lab) -> list[str]:
    """Turn on synchronous mode's first result: one synchronous standby."""
    return list(wait_for("a synchronous standby", lambda: synchronous(lab), seconds=60))


def settled(scene: Scene) -> None:
    """What people have done is how the cluster was: take its picture anew."""
    scene.lab.wait_healthy(60)
    scene.fresh = look(scene.lab)
