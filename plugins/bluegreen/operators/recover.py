"""Recover the held member alone to the mark, promote it there, and prove it: the point of no return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.node import DataDirectory, NodeHook
from bluegreen.hooks.promotion import promoted
from bluegreen.hooks.proof import prove_identity, prove_wal
from bluegreen.hooks.standalone import Standalone
from bluegreen.hooks.stopping import check_down, check_host_down
from bluegreen.operators.base import BluegreenOperator, survey_as_owner

if TYPE_CHECKING:
    from airflow.sdk import Context


class RecoverToMarkOperator(BluegreenOperator):
    """Recover the held member to the recorded XID, outside Patroni and shut to the world.

    Every other member is proven down first; the timeline histories of all are seeded, so that the new timeline
    gets a number that nobody has used; ``pg_hba.conf`` lets in only the data directory's owner over the local
    socket, and nothing is archived. The promotion is proven by the last line of the new timeline's history,
    ``after transaction XID``, and by ``pg_control``, which is on that timeline; the server stays shut until
    Patroni starts on it (H3, H5, H9, H12).

    Example::

        recover = RecoverToMarkOperator(task_id="recover", cluster="orders")

    :raises RefusedError: when a member is not down, or the files are not as expected; nothing was promoted.
    :raises FailedForNowError: when recovery did not reach the mark.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Look how far an earlier try came, and do what is missing."""
        survey = survey_as_owner(hook, context)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None:
            raise RefusedError(f"{hook.cluster.name} holds no checkpoint; nothing to recover to")
        survey.require({checkpoint.held, *checkpoint.others} - set(checkpoint.hosts_down))
        node, state = hook.nodes[checkpoint.held], survey.states[checkpoint.held]
        held = Standalone(node, state, checkpoint)
        if checkpoint.phase is Phase.TAKEN_OVER or (checkpoint.past_no_return and not state.aside):
            return {"branch_line": checkpoint.branch_line, "checkpoint": checkpoint.public()}
        if not state.aside:
            raise RefusedError(
                f"{node.where}: {node.config_path} is in place, so Patroni could start; expected it moved aside. "
                "Stop the member first"
            )
        found, histories = self._look(hook, survey, checkpoint)
        prove_identity(found, checkpoint, node.where)
        branch = promoted(checkpoint, found)
        if branch is None and checkpoint.past_no_return:
            raise RefusedError(f"{node.where}: the journal says promoted, but no history line proves it")
        if branch is None:
            # Also one that the journal does not know: it would lead, and take the number of the new timeline.
            survey.require_no_patroni("the promotion")
        else:
            held.shut(found)
        if not found.server_processes:
            if branch is None:
                prove_wal(node, checkpoint, state.config.data_dir, found)
                if checkpoint.phase is not Phase.RECOVERING:
                    checkpoint = checkpoint.advanced(Phase.RECOVERING)
                    needed = {*checkpoint.members} - set(checkpoint.hosts_down)
                    hook.write_journal(checkpoint, needed=needed)
                held.prepare(found, histories)
            held.start(found)
        branch = held.wait_promoted(found)
        timeline, line = branch
        if not checkpoint.past_no_return:
            if checkpoint.phase is not Phase.RECOVERING:
                checkpoint = checkpoint.advanced(Phase.RECOVERING)
            checkpoint = checkpoint.advanced(Phase.PROMOTED, branch_line=line.line, new_timeline=timeline)
            hook.write_journal(checkpoint, needed=[checkpoint.held], optional=checkpoint.others)
        self.log.info("promoted at the mark, timeline %s: %s", timeline, line.line)
        return {"branch_line": line.line, "checkpoint": checkpoint.public()}

    def _look(self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> tuple[DataDirectory, dict[str, str]]:
        """Prove every other member down; return the held one's data directory and the others' history files."""
        down = set(checkpoint.hosts_down)
        for name in sorted(down):
            check_host_down(hook.nodes[name], checkpoint.members[name], reached=survey.reached(name))

        def look(node: NodeHook) -> DataDirectory:
            address = checkpoint.members[node.member]
            state = survey.states[node.member]
            if node.member == checkpoint.held:
                return node.data_directory(state.config)
            if not state.aside:
                raise FailedForNowError(
                    f"{node.where}: {node.config_path} is in place, so Patroni could start there; "
                    "expected it moved aside"
                )
            return check_down(hook.patroni, node, state, address)

        found = hook.on_each({checkpoint.held, *checkpoint.others} - down, look)
        held = found.pop(checkpoint.held)
        return held, {name: text for member in found.values() for name, text in member.histories.items()}
