"""Remove the cluster from the DCS, so that the recovered member can found it anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bluegreen import shell
from bluegreen.checkpoint import Phase
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.node import NodeHook, Result
from bluegreen.operators.base import BluegreenOperator, survey_as_owner

if TYPE_CHECKING:
    from airflow.sdk import Context

ASKS_FOR_LEADER = "specify the leader name"
UNINITIALIZED = "(uninitialized)"
NO_CONFIG = "AttributeError: 'NoneType' object has no attribute 'data'"
PATRONICTL_SECONDS = 60


class RemoveClusterOperator(BluegreenOperator):
    """Run ``patronictl remove`` on the held member, and read the DCS back (hazard H4).

    Only after the promotion at the mark is proven, and only while no Patroni runs: a living leader
    would write its keys again within a second.

    Example::

        remove = RemoveClusterOperator(task_id="remove_cluster", cluster="orders")

    :raises RefusedError: when the held member is not promoted, or a member's configuration is in place.
    :raises FailedForNowError: when the DCS still holds the cluster afterwards.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Prove that nobody lives, remove, read back."""
        survey = survey_as_owner(hook, context)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None or not checkpoint.past_no_return:
            raise RefusedError(
                f"{hook.cluster.name} has no checkpoint whose promotion is proven; the cluster is not removed before"
            )
        if checkpoint.phase is Phase.TAKEN_OVER:
            return {"removed": False}
        survey.require([checkpoint.held])
        if not survey.states[checkpoint.held].aside:
            # A former try came as far as the start of Patroni there: whoever answers now, the next task proves it.
            return {"removed": False}
        survey.require_no_patroni("the cluster is removed")
        members = set(checkpoint.members) - set(checkpoint.hosts_down)
        survey.require(members)

        def dead(node: NodeHook) -> None:
            status = node.service_status()
            if status.running:
                raise FailedForNowError(f"{node.where}: Patroni runs ({status.text}); expected it stopped")

        held = hook.nodes[checkpoint.held]
        hook.on_each(members, dead)
        config = held.config_path + shell.ASIDE
        result = _patronictl(held, shell.remove_cluster(held.commands.patronictl, config, checkpoint.scope))
        if ASKS_FOR_LEADER in result.output + result.error:
            # A leader that was killed leaves its key behind until the ttl ends; that nobody runs is proven above.
            leader = self._leader_key(held, config, checkpoint.scope)
            if leader not in checkpoint.members:
                raise RefusedError(
                    f"{leader} holds the leader's key in the DCS and is no member of checkpoint {checkpoint.id}, so it "
                    "may live, with the discarded data; expected the key of a member that is proven down. Stop Patroni "
                    "there for good, wait for the end of its ttl, then run bluegreen_rollback again"
                )
            self.log.info("the leader's key of %s is still there, though no Patroni runs; it goes too", leader)
            script = shell.remove_cluster(held.commands.patronictl, config, checkpoint.scope, leader=leader)
            result = _patronictl(held, script)
        after = _patronictl(
            held, shell.list_cluster(held.commands.patronictl, config, checkpoint.scope), must="patronictl list"
        )
        gone = UNINITIALIZED in after.output
        if not gone and f"{checkpoint.scope} (" not in after.output:
            # Patroni 3.0 heads its table with the cluster's name alone.
            remains = _remains(held, config, checkpoint.scope)
            gone = remains.get("members", "").strip() == "[]" and _no_config(remains)
        if not gone:
            said = " ".join((result.error + " " + result.output).split())[-300:]
            raise FailedForNowError(
                f"the DCS still holds {checkpoint.scope!r} after patronictl remove on {held.where}; it said: {said}"
            )
        return {"removed": True}

    def _leader_key(self, held: NodeHook, config: str, scope: str) -> str:
        try:
            members = json.loads(_remains(held, config, scope).get("members", ""))
            return next(str(one["Member"]) for one in members if "leader" in str(one["Role"]).lower())
        except (ValueError, TypeError, KeyError, StopIteration):
            raise FailedForNowError(
                f"patronictl on {held.where} asks for the leader's name, but lists none; expected one or neither. "
                "Its key ends by itself after Patroni's ttl: try again then"
            ) from None


def _patronictl(held: NodeHook, script: str, *, must: str = "") -> Result:
    """Run patronictl, which waits while the DCS does not answer.

    :param must: what it does, where it must succeed.
    """
    try:
        if must:
            return held.done(script, must, timeout_seconds=PATRONICTL_SECONDS)
        return held.run(script, timeout_seconds=PATRONICTL_SECONDS)
    except OutcomeUnknownError as error:
        # what it did is seen by the next try
        raise FailedForNowError(
            f"{error}; it was patronictl, which waits as long as the DCS does not answer: look at etcd, or what "
            "Patroni uses there"
        ) from None


def _remains(held: NodeHook, config: str, scope: str) -> dict[str, str]:
    script = shell.remains_of_cluster(held.commands.patronictl, config, scope)
    return _patronictl(held, script, must="patronictl list and show-config").sections()


def _no_config(remains: dict[str, str]) -> bool:
    """Tell whether ``show-config`` showed nothing, or failed over just that, as Patroni 3.0 does."""
    said = remains.get("config", "").strip()
    return said in ("", "null", "{}") if remains.get("status", "").strip() == "0" else said.endswith(NO_CONFIG)
