"""### Bring the database back to the state before the deployment

**This is an outage of some seconds, and everything committed since the checkpoint is discarded.**

`plan` → `stop` (the replicas, then the leader, and beside them the held member) → `recover` (the point of no
return) → `remove_cluster` → `start_leader` → `rejoin` → `close`. A failure before the promotion in `recover` puts
the old cluster back into service by itself (`put_back`); after it there is only forward: run this DAG again with
the same params.

To end it, mark the running **task** failed, never the run: Airflow then skips `put_back` and `report` too. Where it
happened, run this DAG again with the same params.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from bluegreen import params
from bluegreen.operators.close import CloseCheckpointOperator, UnlockClusterOperator
from bluegreen.operators.plan import ListMembersOperator, PlanRollbackOperator
from bluegreen.operators.put_back import PutBackOperator
from bluegreen.operators.recover import RecoverToMarkOperator
from bluegreen.operators.rejoin import RejoinMemberOperator
from bluegreen.operators.remove import RemoveClusterOperator
from bluegreen.operators.report import OutcomeOperator, ReportOperator
from bluegreen.operators.start import StartLeaderOperator
from bluegreen.operators.stop import StopMembersOperator

with DAG(
    "bluegreen_rollback",
    schedule=None,
    tags=["bluegreen"],
    doc_md=__doc__,
    allowed_run_types=["manual", "operator_triggered"],
    params={
        "cluster": params.cluster(),
        "checkpoint": params.checkpoint(required=True),
        "confirm": Param(type="string", minLength=1, title="Confirm", description="The cluster's name, typed again."),
        "reason": Param("", type="string", title="Reason", description="Why; the report carries it."),
        "rejoin": Param(
            "auto",
            enum=["auto", "rewind", "reclone"],
            title="Rejoin",
            description="How the other members come back: rewound where that is possible, or cloned afresh.",
            section="More",
        ),
        "hosts_down": Param(
            [],
            type="array",
            items={"type": "string"},
            title="Hosts down",
            description="Members whose host is certainly down and cannot come back by itself.",
            section="More",
        ),
        "take_over": Param(
            False,
            type="boolean",
            title="Take over",
            description="Roll back although the deployment's run is still going on.",
            section="More",
        ),
        "break_lock": params.break_lock(),
    },
) as dag:
    plan = PlanRollbackOperator(
        task_id="plan",
        **{
            name: dag.param(name)
            for name in ("checkpoint", "confirm", "reason", "rejoin", "hosts_down", "take_over", "break_lock")
        },
    )
    stop = StopMembersOperator(
        task_id="stop", members=plan.output["replicas"], beside=plan.output["held"], last=plan.output["leader"]
    )
    recover = RecoverToMarkOperator(task_id="recover")
    remove_cluster = RemoveClusterOperator(task_id="remove_cluster")
    start_leader = StartLeaderOperator(task_id="start_leader")
    others = ListMembersOperator(task_id="others", members=plan.output["others"])
    # Airflow stores a `dag.param` of a mapped task with its address in memory: each parsing would make a new version
    rejoin = RejoinMemberOperator.partial(
        task_id="rejoin", how="{{ params.rejoin }}", map_index_template="{{ task.member }}"
    ).expand(member=others.output)
    # where every other member is declared down nobody rejoins, and what is left is still to be proven and told
    close = CloseCheckpointOperator(task_id="close", trigger_rule="none_failed")
    put_back = PutBackOperator(task_id="put_back", after=("plan", "stop", "recover", "start_leader"))
    unlock = UnlockClusterOperator(task_id="unlock", trigger_rule="all_done")
    report = ReportOperator(
        task_id="report", operation="rollback", success="rolled_back", first="plan", undoing=("put_back",)
    )
    outcome = OutcomeOperator(task_id="outcome", good=("rolled_back",))

    plan >> stop >> recover >> remove_cluster >> start_leader >> rejoin >> close >> unlock
    [stop, recover, start_leader] >> put_back >> unlock >> report >> outcome
    dag.add_result(report.output)
