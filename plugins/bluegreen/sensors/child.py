"""Wait for a child run and take over its report."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.triggers.external_task import DagStateTrigger
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from bluegreen.exceptions import FailedForNowError
from bluegreen.operators.base import CHILD_REPORT_KEY, FINISHED_STATES, plain, push_problem, task_states
from bluegreen.operators.child import CHILD_RUN_KEY, child_run_id

if TYPE_CHECKING:
    from airflow.sdk import Context


class ChildRunSensor(BaseOperator):
    """Wait until the run that a :class:`TriggerChildOperator` triggered has ended; return its report.

    It waits in the triggerer, so that waiting parents never take the slots that their children need.

    Example::

        held = ChildRunSensor(task_id="held", trigger="take_checkpoint", operation="checkpoint")

    :param trigger: the task that triggered it.
    :param operation: ``checkpoint``, ``resume`` or ``rollback``.
    :param poke_interval: seconds between two looks.
    :raises FailedForNowError: when the child failed, with its report's message.
    """

    def __init__(self, *, trigger: str, operation: str, poke_interval: float = 1.0, **kwargs: Any) -> None:
        kwargs.setdefault("trigger_rule", "none_failed")
        kwargs.setdefault("retries", 0)
        kwargs.setdefault("retry_delay", timedelta(seconds=5))
        super().__init__(**kwargs)
        self.trigger = trigger
        self.operation = operation
        self.poke_interval = poke_interval

    def execute(self, context: Context) -> Any:
        """Look at once; wait only for a child that has not ended."""
        run_id = self._child(context)
        if self._state(context, run_id) in FINISHED_STATES:
            return self.execute_complete(context)
        self.defer(
            trigger=DagStateTrigger(
                dag_id=f"bluegreen_{self.operation}",
                states=sorted(FINISHED_STATES),  # type: ignore[arg-type]
                run_ids=[run_id],
                poll_interval=self.poke_interval,
            ),
            method_name="execute_complete",
        )
        return None

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Return the child's report, whatever the trigger said.

        :raises FailedForNowError: when the child did not succeed.
        """
        ti, run_id = context["ti"], self._child(context)
        state = self._state(context, run_id)
        report = ti.xcom_pull(dag_id=f"bluegreen_{self.operation}", run_id=run_id, task_ids="report")
        report = report if isinstance(report, dict) else {}
        if state != "success":
            why = report.get("message") or f"run {run_id} is {state} and left no report"
            error = FailedForNowError(f"the {self.operation} failed: {why}")
            ti.xcom_push(key=CHILD_REPORT_KEY, value=report)
            push_problem(context, error)
            raise error
        return {**report, "child_run_id": run_id}

    def _child(self, context: Context) -> str:
        run_id = context["ti"].xcom_pull(task_ids=self.trigger, key=CHILD_RUN_KEY)
        if not isinstance(run_id, str) or not self._is_of_this_pass(context, run_id):
            raise AirflowSkipException(f"the task {self.trigger} triggered nothing")
        return run_id

    def _is_of_this_pass(self, context: Context, run_id: str) -> bool:
        """Tell a child of this pass from one of an earlier pass of a cleared run, whose trigger was skipped now.

        Airflow removes what a task left only when the task starts again. A trigger that found its child there, after
        its worker had died, is skipped too, but its child has the number of this pass.
        """
        if task_states(context, [self.trigger]).get(self.trigger) == "success":
            return True
        return run_id == child_run_id(context["dag_run"], self.operation)

    def _state(self, context: Context, run_id: str) -> str:
        return plain(context["ti"].get_dagrun_state(f"bluegreen_{self.operation}", run_id))
