"""Who is in the cluster as the DCS itself says, by ``patronictl`` on a node: also while no Patroni answers."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bluegreen import shell
from bluegreen.hooks.node import NodeHook

PATRONICTL_SECONDS = 20


@dataclass(frozen=True)
class Listing:
    """What ``patronictl list`` answered.

    :param members: member to host; None where it gave no list.
    :param call: what was called and how it ended, for a sentence.
    :param said: the end of what it said, for a sentence.
    """

    members: dict[str, str] | None
    call: str
    said: str


def list_members(node: NodeHook, config: str, scope: str) -> Listing:
    """Ask the DCS for the members.

    :param config: Patroni's configuration on the node, in place or moved aside.
    """
    path = node.commands.patronictl
    result = node.run(shell.list_members(path, config, scope), timeout_seconds=PATRONICTL_SECONDS)
    members: dict[str, str] | None
    try:
        members = {str(one["Member"]): str(one["Host"]) for one in json.loads(result.output)}
    except (ValueError, TypeError, KeyError, RecursionError):
        members = None
    return Listing(
        None if result.status else members,
        f"`{path} list {scope}` ended with status {result.status}",
        " ".join((result.error.strip() or result.output.strip() or "nothing")[-300:].split()),
    )
