"""Trigger another DAG's run exactly once, and find it again after a worker died.

Source: Airflow's ``TriggerDagRunOperator``: with a run id of its own a second trigger of the same run
is noticed; a retry then skips, and the sensor goes on to wait for the run that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator

from bluegreen.exceptions import FailedForNowError
from bluegreen.operators.base import CHILD_MARK, RETRY_DELAY, paused_dags, push_problem

if TYPE_CHECKING:
    from airflow.sdk import Context

CHILD_RUN_KEY = "child_run_id"


def child_run_id(run: Any, operation: str) -> str:
    """Return the id of the child that a run triggers in its present pass: each clearing of it counts as one more."""
    return f"{run.run_id}{CHILD_MARK}{operation}__{run.clear_number or 0}"


class TriggerChildOperator(TriggerDagRunOperator):
    """Trigger a run of one of this project's DAGs as this run's child.

    The child's run id is this run's, with the operation and this run's clear number, so that a retry
    finds the same child and a cleared parent gets a new one.

    Example::

        take = TriggerChildOperator(task_id="take_checkpoint", operation="checkpoint", conf={"cluster": "orders"})

    :param operation: ``checkpoint``, ``resume`` or ``rollback``.
    :param conf: the child's params (templated).
    :raises FailedForNowError: when that DAG is paused.
    """

    template_fields: Sequence[str] = ("conf",)

    def __init__(self, *, operation: str, **kwargs: Any) -> None:
        kwargs.setdefault("retries", 5)
        kwargs.setdefault("retry_delay", RETRY_DELAY)
        super().__init__(
            trigger_dag_id=f"bluegreen_{operation}",
            skip_when_already_exists=True,
            wait_for_completion=False,
            openlineage_inject_parent_info=False,
            logical_date=None,
            **kwargs,
        )
        self.operation = operation

    def execute(self, context: Context) -> None:
        """Leave the child's run id for the sensor, then trigger."""
        try:
            if paused_dags(context, [self.operation]):
                raise FailedForNowError(
                    f"the DAG {self.trigger_dag_id} is paused in Airflow, so that a run of it would never start. "
                    f"Unpause it, then clear the task {self.task_id} with all that follow"
                )
        except FailedForNowError as error:
            push_problem(context, error)
            raise
        self.trigger_run_id = child_run_id(context["dag_run"], self.operation)
        context["ti"].xcom_push(key=CHILD_RUN_KEY, value=self.trigger_run_id)
        super().execute(context)
