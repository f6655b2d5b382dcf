"""### Hold one standby at the state before a deployment

`check` → `hold` → `mark` → `record`. When it succeeds, the deployment may begin; its report names the
transaction id, the LSN and the standby. When a step fails, `undo` lets the standby go on again.
"""

from __future__ import annotations

from airflow.sdk import DAG

from bluegreen import params
from bluegreen.operators.close import UnlockClusterOperator
from bluegreen.operators.hold import HoldStandbyOperator, RecordCheckpointOperator
from bluegreen.operators.mark import MarkCheckpointOperator
from bluegreen.operators.preflight import CheckpointPreflightOperator
from bluegreen.operators.release import UndoCheckpointOperator
from bluegreen.operators.report import OutcomeOperator, ReportOperator

with DAG(
    "bluegreen_checkpoint",
    schedule=None,
    tags=["bluegreen"],
    doc_md=__doc__,
    params={
        "cluster": params.cluster(),
        "label": params.label(),
        "standby": params.optional_text("Standby", "The member to hold. Empty: the project chooses."),
        "break_lock": params.break_lock(),
    },
) as dag:
    check = CheckpointPreflightOperator(
        task_id="check",
        checkpoint_label=dag.param("label"),
        standby=dag.param("standby"),
        break_lock=dag.param("break_lock"),
    )
    hold = HoldStandbyOperator(
        task_id="hold",
        standby=check.output["standby"],
        checkpoint_id=check.output["checkpoint_id"],
        checkpoint_label=check.output["label"],
    )
    mark = MarkCheckpointOperator(task_id="mark")
    record = RecordCheckpointOperator(task_id="record")
    undo = UndoCheckpointOperator(task_id="undo", trigger_rule="one_failed")
    unlock = UnlockClusterOperator(task_id="unlock", trigger_rule="all_done")
    report = ReportOperator(task_id="report", operation="checkpoint", success="held", first="check", undoing=("undo",))
    outcome = OutcomeOperator(task_id="outcome", good=("held",))

    check >> hold >> mark >> record >> unlock
    [hold, mark, record] >> undo >> unlock >> report >> outcome
    dag.add_result(report.output)
