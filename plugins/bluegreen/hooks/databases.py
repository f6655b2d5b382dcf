"""What a rewind leaves out of the databases that a deployment had dropped."""

from __future__ import annotations

from collections.abc import Iterable

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.node import NodeHook
from bluegreen.recovery.versions import ServerVersion


def complete_databases(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, members: Iterable[str]) -> None:
    """Put PG_VERSION back into the folders of databases that lack it, on each of these members.

    Whoever was rewound may lack it, the leader too: what one has, the others get, where they have the folder.

    :raises FailedForNowError: when a node did not do it.
    """
    if not ServerVersion(checkpoint.server_version_num).rewind_skips_version_files:
        return
    names = set(members)

    def files_of(node: NodeHook) -> list[str]:
        listed = node.done(
            shell.version_files(survey.states[node.member].config.data_dir), "listing the databases' folders"
        )
        return listed.sections()["files"].splitlines()

    files = sorted({file for found in hook.on_each(names, files_of).values() for file in found})

    def complete(node: NodeHook) -> None:
        data_dir = survey.states[node.member].config.data_dir
        added = node.done(shell.add_version_files(data_dir, files), "completing the databases' folders").output.split()
        if added:
            node.log.info("%s: pg_rewind had left out %s", node.where, ", ".join(added))

    hook.on_each(names, complete)
