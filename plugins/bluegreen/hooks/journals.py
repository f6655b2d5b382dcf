"""Removing what a finished operation leaves beside Patroni's configuration."""

from __future__ import annotations

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.node import NodeHook

LEFTOVERS = (shell.JOURNAL, shell.ORIGINAL, shell.SAVED, shell.LOG, shell.RUNBOOK)


def remove_journals(hook: ClusterHook, checkpoint: Checkpoint, members: set[str]) -> None:
    """Remove journal and kept files; the held member's last, so that all can be found again until then."""

    def clear(node: NodeHook) -> None:
        node.done(shell.remove_files(*(node.config_path + suffix for suffix in LEFTOVERS)), "removing the journal")

    hook.on_each(members - {checkpoint.held}, clear)
    hook.on_each({checkpoint.held}, clear)
