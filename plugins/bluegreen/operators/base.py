"""What every operator of this project shares: errors that explain themselves, retries, and times.

Source: Airflow's ``BaseOperator`` and ``ExceptionRetryPolicy``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryPolicy, RetryRule

from bluegreen.checkpoint import Owner
from bluegreen.exceptions import BluegreenError, FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

PROBLEM_KEY = "problem"
CHANGED_KEY = "changed"
BEGUN_KEY = "begun"
CHILD_REPORT_KEY = "child_report"
DEPLOY_DAG_ID = "bluegreen_deploy"
CHILD_MARK = "__bluegreen_"
FINISHED_STATES = frozenset({"success", "failed"})

RETRY_DELAY = timedelta(seconds=2)
RETRY_UNLESS_REFUSED = ExceptionRetryPolicy(
    rules=[RetryRule(exception=RefusedError, action=RetryAction.FAIL, reason="refused as unsafe or wrong")]
)


class BluegreenOperator(BaseOperator):
    """One verb on one cluster.

    A subclass implements :meth:`act`; its result is a mapping that the report reads, to which
    ``seconds`` is added. An error of this project is pushed as the XCom ``problem`` before it ends
    the try, so that the report can give the sentence. What is refused is not retried.

    :param cluster: the cluster's name in the registry (templated).
    """

    template_fields: Sequence[str] = ("cluster",)

    # Defaults that stand in a signature are those of a mapped task too; Airflow gives it its own for all others.
    def __init__(
        self,
        *,
        cluster: str = "{{ params.cluster }}",
        retries: int = 2,
        retry_delay: timedelta = RETRY_DELAY,
        retry_policy: RetryPolicy = RETRY_UNLESS_REFUSED,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_delay=retry_delay, retry_policy=retry_policy, **kwargs)
        self.cluster = cluster

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the verb and return its result, with the ``seconds`` it took.

        :raises BluegreenError: as the verb does.
        """
        started = time.monotonic()
        try:
            with ClusterHook(self.cluster) as hook:
                result = self.act(hook, context)
        except BluegreenError as error:
            push_problem(context, error)
            raise
        return {**result, "seconds": round(time.monotonic() - started, 3)}

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Look, act once, prove; return what the report shows."""
        raise NotImplementedError


def push_problem(context: Context, error: BluegreenError) -> None:
    """Leave an error's sentence for the report."""
    context["ti"].xcom_push(key=PROBLEM_KEY, value={"kind": type(error).__name__, "message": str(error)})


def owner_of(context: Context, operation: str) -> Owner:
    """Return who this run is, as locks and journals name it."""
    run = context["dag_run"]
    return Owner(
        operation=operation,
        dag_id=run.dag_id,
        run_id=run.run_id,
        person=getattr(run, "triggering_user_name", None) or "",
        since=(run.start_date or datetime.now(UTC)).isoformat(timespec="seconds"),
    )


def survey_as_owner(hook: ClusterHook, context: Context, *, patroni_must_answer: bool = False) -> Survey:
    """Look at the cluster, and refuse to go on unless this run holds its lock.

    :raises BluegreenError: as :func:`require_lock` does.
    """
    survey = hook.survey(patroni_must_answer=patroni_must_answer)
    require_lock(hook, context, survey)
    return survey


def require_lock(hook: ClusterHook, context: Context, survey: Survey) -> None:
    """Prove that this run holds the cluster's lock; a task that was cleared after its run had ended takes it again.

    It takes it only for the checkpoint that this run's first task had found or made: another one, which has come
    meanwhile, is not this run's to change.

    :raises LockedError: when another run holds it; says who.
    :raises RefusedError: when nobody does, and what this run worked on is not there any more.
    """
    owner = owner_of(context, "")
    hook.refuse_foreign_lock(owner, survey.states)
    if hook.holds_lock(owner, survey.states):
        return
    checkpoint = survey.known_checkpoint()
    if checkpoint is None or checkpoint.id not in checkpoints_of_run(context):
        found = f"checkpoint {checkpoint.id}" if checkpoint else "no checkpoint"
        raise RefusedError(
            f"this run does not hold the lock of {hook.cluster.name}, which is given back at its end, and {found} is "
            "held now; expected the one that this run worked on. Run the DAG again, or clear its first task with all "
            "that follow"
        )
    lock_cluster(
        hook,
        context,
        owner.dag_id.removeprefix("bluegreen_"),
        survey,
        held=checkpoint.held,
        members=checkpoint.members,
        hosts_down=checkpoint.hosts_down,
    )


def checkpoints_of_run(context: Context) -> set[str]:
    """Return the ids of the checkpoints that the tasks before this one have found, made, or chosen an id for."""
    found: set[Any] = set()
    for name in context["task"].get_flat_relative_ids(upstream=True):
        result = context["ti"].xcom_pull(task_ids=name)
        if isinstance(result, dict):
            record = result.get("checkpoint")
            found |= {record.get("id") if isinstance(record, dict) else None, result.get("checkpoint_id")}
    return {str(one) for one in found if one}


def lock_cluster(
    hook: ClusterHook,
    context: Context,
    operation: str,
    survey: Survey,
    *,
    held: str,
    members: Iterable[str],
    hosts_down: Iterable[str] = (),
    breaks: str | None = None,
) -> list[str]:
    """Take the cluster's lock for this run; the lock of a run that Airflow knows to have ended goes.

    :param operation: what the lock is taken for, as others read it.
    :param held: the held member, or the one that will be.
    :param breaks: the run whose lock a person breaks.
    :return: warnings.
    :raises LockedError: when another run holds it; says which, who and since when.
    """
    return hook.lock(
        owner_of(context, operation),
        states=survey.states,
        held=held,
        members=members,
        hosts_down=hosts_down,
        breaks=breaks,
        is_finished=lambda other: is_finished(context, other),
    )


def is_finished(context: Context, owner: Owner) -> bool:
    """Tell whether Airflow knows that a run has ended; a run that it does not know is not called ended."""
    state = run_state(context, owner)
    return state is not None and state in FINISHED_STATES


def is_running(context: Context, owner: Owner) -> bool:
    """Tell whether Airflow knows that a run is still going on."""
    state = run_state(context, owner)
    return state is not None and state not in FINISHED_STATES


def run_state(context: Context, owner: Owner) -> str | None:
    """Return the state of a run, or None where Airflow does not know it."""
    try:
        return plain(context["ti"].get_dagrun_state(owner.dag_id, owner.run_id))
    except Exception as error:
        log.info("the state of %s is not known: %s", owner, error)
        return None


def paused_dags(context: Context, operations: Iterable[str]) -> list[str]:
    """Return which of this project's DAGs are paused in Airflow: a run of them waits in the queue and never starts.

    :param operations: their names without ``bluegreen_``.
    :raises FailedForNowError: when Airflow does not say so of one.
    """
    paused = []
    for dag_id in (f"bluegreen_{name}" for name in operations):
        try:
            if context["ti"].get_dag(dag_id).is_paused:
                paused.append(dag_id)
        except Exception as error:
            raise FailedForNowError(f"Airflow does not say whether the DAG {dag_id} is paused: {error}") from error
    return paused


def task_states(context: Context, task_ids: Sequence[str] | None = None) -> dict[str, str]:
    """Return the states of this run's tasks by task id, by default of all; a mapped one's has its index."""
    ti = context["ti"]
    wanted = None if task_ids is None else list(task_ids)
    found = ti.get_task_states(dag_id=ti.dag_id, task_ids=wanted, run_ids=[ti.run_id]).get(ti.run_id, {})
    return {name: plain(state) for name, state in found.items()}


def plain(value: Any) -> str:
    """Return the text of a state or run type, which Airflow gives as an enum or as text."""
    return str(getattr(value, "value", value))


def deployment_of(context: Context) -> Owner | None:
    """Return the deployment whose task triggered this run, or None.

    A child's run id is its parent's, ``__``, and a suffix; that a task triggered it, and no person, is
    what Airflow recorded as the run's type.
    """
    run = context["dag_run"]
    parent, marker, _ = run.run_id.partition(CHILD_MARK)
    if not marker or plain(run.run_type) != "operator_triggered":
        return None
    return Owner(operation="deploy", dag_id=DEPLOY_DAG_ID, run_id=parent)
