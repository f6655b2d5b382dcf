"""### Let the held standby go on: the deployment was good

`check` → `release` → `rejoin` → `caught_up` → `close`. Afterwards tags and journal are gone and the standby's
Patroni configuration is what it was. `rejoin` has something to do only where the leader no longer has the WAL that
the standby needs: then the standby is cloned afresh.
"""

from __future__ import annotations

from airflow.sdk import DAG

from bluegreen import params
from bluegreen.operators.close import CloseCheckpointOperator, UnlockClusterOperator
from bluegreen.operators.reclone import RecloneLostStandbyOperator
from bluegreen.operators.release import PlanResumeOperator, ReleaseStandbyOperator
from bluegreen.operators.report import OutcomeOperator, ReportOperator
from bluegreen.sensors.lag import LagSensor

with DAG(
    "bluegreen_resume",
    schedule=None,
    tags=["bluegreen"],
    doc_md=__doc__,
    params={
        "cluster": params.cluster(),
        "checkpoint": params.checkpoint(required=False),
        "break_lock": params.break_lock(),
    },
) as dag:
    check = PlanResumeOperator(task_id="check", checkpoint=dag.param("checkpoint"), break_lock=dag.param("break_lock"))
    release = ReleaseStandbyOperator(task_id="release")
    rejoin = RecloneLostStandbyOperator(task_id="rejoin")
    caught_up = LagSensor(task_id="caught_up", held_must_replay=True)
    close = CloseCheckpointOperator(task_id="close")
    unlock = UnlockClusterOperator(task_id="unlock", trigger_rule="all_done")
    report = ReportOperator(task_id="report", operation="resume", success="resumed", first="check")
    outcome = OutcomeOperator(task_id="outcome", good=("resumed",))

    check >> release >> rejoin >> caught_up >> close >> unlock >> report >> outcome
    dag.add_result(report.output)
