"""Wait for a child run and take over its report."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowSkipException

from bluegreen.exceptions import FailedForNowError
from bluegreen.operators.base import CHILD_REPORT_KEY, FINISHED_STATES, push_problem
from bluegreen.operators.child import CHILD_RUN_KEY

if TYPE_CHECKING:
    from airflow.sdk import Context


class ChildRunSensor(BaseSensorOperator):
    """Wait until the run that a :class:`TriggerChildOperator` triggered has ended; return its report.

    Example::

        held = ChildRunSensor(task_id="held", trigger="take_checkpoint", operation="checkpoint")

    :param trigger: the task that triggered it.
    :param operation: ``checkpoint``, ``resume`` or ``rollback``.
    :raises FailedForNowError: when the child failed, with its report's message.
    """

    def __init__(self, *, trigger: str, operation: str, **kwargs: Any) -> None:
        kwargs.setdefault("trigger_rule", "none_failed")
        kwargs.setdefault("mode", "reschedule")
        kwargs.setdefault("poke_interval", 2)
        kwargs.setdefault("timeout", timedelta(days=1).total_seconds())
        kwargs.setdefault("retries", 2)
        super().__init__(**kwargs)
        self.trigger = trigger
        self.operation = operation

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Look at the child's state; its report is this task's result."""
        ti = context["ti"]
        run_id = ti.xcom_pull(task_ids=self.trigger, key=CHILD_RUN_KEY)
        dag_id = f"bluegreen_{self.operation}"
        if not isinstance(run_id, str):
            raise AirflowSkipException(f"the task {self.trigger} triggered nothing")
        state = str(ti.get_dagrun_state(dag_id, run_id))
        if state not in FINISHED_STATES:
            self.log.info("%s run %s is %s", dag_id, run_id, state)
            return False
        report = ti.xcom_pull(dag_id=dag_id, run_id=run_id, task_ids="report")
        report = report if isinstance(report, dict) else {}
        if state != "success":
            error = FailedForNowError(
                f"the {self.operation} failed: {report.get('message') or f'run {run_id} left no report'}"
            )
            ti.xcom_push(key=CHILD_REPORT_KEY, value=report)
            push_problem(context, error)
            raise error
        return PokeReturnValue(is_done=True, xcom_value=report | {"child_run_id": run_id})
