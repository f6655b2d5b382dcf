"""Start Patroni on the recovered member and prove that it has taken over."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.hold import clean_text
from bluegreen.hooks.leadership import (
    look_at_leader,
    prove_write,
    restore_dynamic_config,
    start_patroni,
)
from bluegreen.hooks.node import NodeHook, NodeState
from bluegreen.hooks.standalone import Standalone
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, survey_as_owner
from bluegreen.recovery.node_config import edit, parse_node_config
from bluegreen.topology import kept_out_of_elections

if TYPE_CHECKING:
    from airflow.sdk import Context

LEADER_SECONDS = 120
MAY_LEAD: dict[tuple[str, ...], Any] = {("tags", "nofailover"): False}


class StartLeaderOperator(BluegreenOperator):
    """Open the recovered server, start Patroni on it without the hold, and prove the takeover.

    The server is opened only while no other Patroni answers: beside one that leads, two members would take
    writes (hazards H10, H12 and H13). Proven means: the leader is the held member, its history has the line
    proven before, and a write commits. ``/config`` is put back as it was, where Patroni shows it already. Run
    again after the takeover, it takes another leader on the same line of history for good: a failover may have
    come between.

    Example::

        start = StartLeaderOperator(task_id="start_leader", cluster="orders")

    :raises RefusedError: when the promotion is not proven.
    :raises FailedForNowError: when another Patroni answers, or the member did not become leader in time.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Bring the configuration back, start, wait for the leader, write."""
        survey = survey_as_owner(hook, context)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None or not checkpoint.past_no_return:
            raise RefusedError(f"{hook.cluster.name} has no checkpoint whose promotion is proven; nothing is started")
        survey.require([checkpoint.held])
        node, state = hook.nodes[checkpoint.held], survey.states[checkpoint.held]
        warnings: list[str] = []
        if checkpoint.phase is Phase.PROMOTED and state.aside:
            survey.require_no_patroni(f"{checkpoint.held} is opened to clients")
            # Patroni connects over TCP when it starts.
            Standalone(node, state, checkpoint).open(node.data_directory(state.config))
            warnings = self._bring_back(node, state, checkpoint)
        starts_first = checkpoint.phase is Phase.PROMOTED or not _another_leads(survey, checkpoint.held)
        if starts_first:
            start_patroni(node)
        look = partial(look_at_leader, hook, survey, checkpoint)
        leader = wait_until(look, seconds=LEADER_SECONDS, every_seconds=0.1)
        if not starts_first:
            # Beside a leader on another line of history its Patroni would rewind the proven data away: never before.
            start_patroni(node)
        write = wait_until(partial(prove_write, hook, checkpoint, leader), seconds=30, every_seconds=0.1)
        proven = checkpoint.config_proven
        try:
            if not proven:
                warnings += restore_dynamic_config(hook, checkpoint, leader, seconds=1)
                proven = True
        except FailedForNowError as error:
            self.log.info("Patroni publishes its dynamic configuration later, and it is proven then: %s", error)
        if checkpoint.phase is Phase.PROMOTED or proven is not checkpoint.config_proven:
            checkpoint = checkpoint.advanced(Phase.TAKEN_OVER, config_proven=proven)
            hook.write_journal(checkpoint, needed=[checkpoint.held], optional=checkpoint.others)
        return {"checkpoint": checkpoint.public(), "first_write": write, "warnings": warnings}

    def _bring_back(self, node: NodeHook, state: NodeState, checkpoint: Checkpoint) -> list[str]:
        if checkpoint.hold is None:
            raise RefusedError(f"the journal of checkpoint {checkpoint.id} has no hold in it")
        clean, warning = clean_text(node, state, checkpoint.hold)
        # Patroni writes /config from this file after the removal; a stale one could carry "pause" (H10).
        cached = f"{state.config.data_dir}/patroni.dynamic.json"
        node.done(
            shell.replace_files({cached: json.dumps(checkpoint.dynamic_config)}), "writing the dynamic configuration"
        )
        # A leader that is tagged nofailover keeps no slots for its replicas (Patroni 4), so none could rejoin.
        if state.folder:
            node.done(shell.release_aside(node.config_path, clean), "bringing Patroni's configuration back")
            if kept_out_of_elections(node.state().config.tags):
                path = f"{node.config_path}/{shell.HOLD_FILE}"
                node.done(shell.replace_files({path: edit("", MAY_LEAD, where=path)}), "letting the member lead")
        else:
            final = next(text for text in (clean, state.original, state.files[""]) if text is not None)
            if kept_out_of_elections(parse_node_config([final], where=node.where).tags):
                node.done(shell.replace_files({node.config_path + shell.CLEAN: final}), "keeping what the owner wrote")
                clean = edit(final, MAY_LEAD, where=f"{node.where}: {node.config_path}")
            node.done(shell.release_aside(node.config_path, clean), "bringing Patroni's configuration back")
        return [warning] if warning else []


def _another_leads(survey: Survey, held: str) -> bool:
    members = survey.topology.members if survey.topology else ()
    return any(member.is_leader and member.name != held for member in members)
