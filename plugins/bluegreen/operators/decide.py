"""Decide what follows a deployment: resume, or rollback."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.branch import BaseBranchOperator
from airflow.providers.standard.operators.hitl import HITLBranchOperator

from bluegreen.clusters import load_registry
from bluegreen.operators.base import BEGUN_KEY, RETRY_DELAY, task_states

if TYPE_CHECKING:
    from airflow.sdk import Context

RESUME, ROLLBACK = "resume", "rollback"


class DecideOperator(BaseBranchOperator):
    """Branch to resume or rollback by how the deployment's tasks ended; anything but success is a failure.

    Without a held checkpoint there is nothing to decide, and all branches are skipped. A deployment that says that it
    failed before it began has changed nothing: a rollback would be an outage for nothing, so the standby goes on.

    Example::

        decide = DecideOperator(
            task_id="decide", held="held", proofs=("deploy", "checks"), resume="resume", rollback="roll_back", ask="ask"
        )

    :param held: the task that succeeds when a checkpoint is held.
    :param proofs: the tasks that must have succeeded.
    :param deploys: the :class:`RunDeploymentOperator` among them, which says whether it had begun.
    :param resume: the task to follow then.
    :param rollback: the task to follow otherwise.
    :param ask: the task to follow instead of either, where ``decision`` is ``ask``.
    :param decision: ``auto`` or ``ask`` (templated).
    """

    template_fields: Sequence[str] = ("decision",)

    def __init__(
        self,
        *,
        held: str,
        proofs: tuple[str, ...],
        deploys: str = "deploy",
        resume: str,
        rollback: str,
        ask: str,
        decision: str = "auto",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("trigger_rule", "all_done")
        kwargs.setdefault("retries", 3)
        kwargs.setdefault("retry_delay", RETRY_DELAY)
        super().__init__(**kwargs)
        self.held = held
        self.proofs = proofs
        self.deploys = deploys
        self.resume = resume
        self.rollback = rollback
        self.ask = ask
        self.decision = decision

    def choose_branch(self, context: Context) -> str | None:
        """Return the task to follow, or None."""
        states = task_states(context, [self.held, *self.proofs])
        if states.get(self.held) != "success":
            self.log.info("no checkpoint is held (%s): nothing was deployed, nothing to decide", states.get(self.held))
            return None
        begun = context["ti"].xcom_pull(task_ids=self.deploys, key=BEGUN_KEY)
        if states.get(self.deploys) == "failed" and begun is False:
            self.log.info("%s failed before the deployment began: nothing to roll back", self.deploys)
            return self.resume
        if self.decision == "ask":
            return self.ask
        good = all(states.get(name) == "success" for name in self.proofs)
        self.log.info("%s: %s", "resume" if good else "roll back", states)
        return self.resume if good else self.rollback


class AskOperator(HITLBranchOperator):
    """Have a person decide; after the registry's ``ask_timeout`` its ``ask_default`` counts.

    Example::

        ask = AskOperator(task_id="ask", subject="Keep it?", resume="resume", rollback="roll_back")

    :param resume: the task that follows "Keep the deployment".
    :param rollback: the task that follows "Roll back".
    :param cluster: the cluster's name in the registry (templated).
    """

    KEEP, ROLL_BACK = "Keep the deployment", "Roll back"
    template_fields: Sequence[str] = (*HITLBranchOperator.template_fields, "cluster")

    def __init__(self, *, resume: str, rollback: str, cluster: str = "{{ params.cluster }}", **kwargs: Any) -> None:
        super().__init__(
            options=[self.KEEP, self.ROLL_BACK],
            options_mapping={self.KEEP: resume, self.ROLL_BACK: rollback},
            defaults=[self.ROLL_BACK],
            **kwargs,
        )
        self.cluster = cluster

    def execute(self, context: Context) -> Any:
        """Take timeout and default from the registry, then wait without holding a slot."""
        entry = load_registry().get(self.cluster)
        self.response_timeout = timedelta(seconds=entry.ask_timeout_seconds)
        self.defaults = [self.ROLL_BACK if entry.ask_default == ROLLBACK else self.KEEP]
        return super().execute(context)
