"""Removing what a finished operation leaves beside Patroni's configuration."""

from __future__ import annotations

from collections.abc import Container

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.node import NodeHook

LEFTOVERS = (shell.ORIGINAL, shell.SAVED, shell.LOG, shell.RUNBOOK, shell.JOURNAL)


def remove_journals(hook: ClusterHook, checkpoint: Checkpoint, members: set[str], *, keep: Container[str] = ()) -> None:
    """Remove journal and kept files; the held member's last, so that all can be found again until then.

    :param keep: endings of files that stay.
    """

    def clear(node: NodeHook) -> None:
        paths = [node.config_path + suffix for suffix in LEFTOVERS if suffix not in keep]
        node.done(shell.remove_files(*paths), "removing the journal")

    hook.on_each(members - {checkpoint.held}, clear)
    hook.on_each({checkpoint.held}, clear)
