"""### Deploy with a way back

A checkpoint, the deployment, its checks; then resume if all went well, or rollback if anything did not. A person
decides instead where `decision` is `ask`. Without a checkpoint nothing is deployed.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from bluegreen import params
from bluegreen.operators.child import TriggerChildOperator
from bluegreen.operators.decide import AskOperator, DecideOperator
from bluegreen.operators.deploy import PlanDeploymentOperator, RunChecksOperator, RunDeploymentOperator
from bluegreen.operators.report import DeployReportOperator, OutcomeOperator
from bluegreen.sensors.child import ChildRunSensor
from bluegreen.sensors.lag import LagSensor

CHECKPOINT = "{{ ti.xcom_pull(task_ids='held')['checkpoint']['id'] }}"

with DAG(
    "bluegreen_deploy",
    schedule=None,
    tags=["bluegreen"],
    doc_md=__doc__,
    params={
        "cluster": params.cluster(),
        "label": params.label(),
        "deployment": Param(
            None,
            type=["null", "string"],
            title="Deployment",
            description="A deployment of this cluster in the registry.",
        ),
        "decision": Param("auto", enum=["auto", "ask"], title="Decision", description="Who decides what follows."),
        "command": params.optional_text("Command", "Ad hoc, where the registry allows it: a shell command."),
        "sql": params.optional_text("SQL", "Ad hoc: statements, or a file below include/."),
        "checks": Param(
            [],
            type="array",
            items={"type": "string"},
            title="Checks",
            description="Ad hoc: SQL statements that each must return true.",
            section="More",
        ),
    },
) as dag:
    what = {name: dag.param(name) for name in ("deployment", "command", "sql", "checks")}
    cluster, label = dag.param("cluster"), dag.param("label")

    plan = PlanDeploymentOperator(task_id="plan", decision=dag.param("decision"), checkpoint_label=label, **what)
    take_checkpoint = TriggerChildOperator(
        task_id="take_checkpoint",
        operation="checkpoint",
        conf={"cluster": cluster, "label": label},
    )
    held = ChildRunSensor(task_id="held", trigger="take_checkpoint", operation="checkpoint")
    deploy = RunDeploymentOperator(task_id="deploy", **what)
    checks = RunChecksOperator(task_id="checks", **what)
    lag = LagSensor(
        task_id="lag",
        held="{{ ti.xcom_pull(task_ids='held')['checkpoint']['held'] }}",
        deferrable=True,
        soft_fail=True,
        timeout=600,
    )
    decide = DecideOperator(
        task_id="decide",
        held="held",
        proofs=("deploy", "checks"),
        resume="resume",
        rollback="roll_back",
        ask="ask",
        decision=dag.param("decision"),
    )
    ask = AskOperator(
        task_id="ask",
        subject="Keep the deployment on {{ params.cluster }}, or roll it back?",
        body="Label: {{ params.label }}. The tasks `deploy` and `checks` of this run say how it went. "
        "A rollback discards everything committed since the checkpoint.",
        resume="resume",
        rollback="roll_back",
    )
    resume = TriggerChildOperator(
        task_id="resume",
        operation="resume",
        conf={"cluster": cluster, "checkpoint": CHECKPOINT},
        trigger_rule="none_failed_min_one_success",
    )
    resumed = ChildRunSensor(task_id="resumed", trigger="resume", operation="resume")
    roll_back = TriggerChildOperator(
        task_id="roll_back",
        operation="rollback",
        conf={
            "cluster": cluster,
            "checkpoint": CHECKPOINT,
            "confirm": cluster,
            "reason": "deployment run {{ run_id }}",
        },
        trigger_rule="none_failed_min_one_success",
    )
    rolled_back = ChildRunSensor(task_id="rolled_back", trigger="roll_back", operation="rollback")
    report = DeployReportOperator(task_id="report")
    outcome = OutcomeOperator(task_id="outcome", good=("deployed",))

    plan >> take_checkpoint >> held >> deploy >> checks >> lag >> decide
    decide >> ask >> [resume, roll_back]
    decide >> [resume, roll_back]
    resume >> resumed >> report
    roll_back >> rolled_back >> report
    report >> outcome
    dag.add_result(report.output)
