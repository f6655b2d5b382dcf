"""The deployment DAG: a checkpoint first, then resume or rollback by how the deployment ended."""

from __future__ import annotations

import json
import time
from typing import Any

import psutil
import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import TimeoutPosix
from lab.config import CHECKOUT
from tests.cluster.scene import BAD_MIGRATION, GOOD_MIGRATION, Scene, wait_for
from tests.cluster.verdict import contents, verdict

from bluegreen.hooks.postgres import MemberSql

CHECKS = ["select count(*) = 1000 from orders", "select bool_and(total > 0) from orders"]


def deploy(scene: Scene, **conf: Any) -> tuple[str, str, dict[str, Any]]:
    """Run the deployment DAG to its end; return its run, state and report."""
    run_id = scene.trigger("deploy", **conf)
    state = scene.airflow.wait("bluegreen_deploy", run_id, seconds=400)
    return run_id, state, scene.airflow.xcom("bluegreen_deploy", run_id, "report") or {}


def answer(scene: Scene, run_id: str, choice: str) -> None:
    """Answer what a deployment asks."""
    # Airflow fails a task that is answered before the process that asked has ended, which no person does.
    time.sleep(2)
    path = f"dags/bluegreen_deploy/dagRuns/{run_id}/taskInstances/ask/-1/hitlDetails"
    done = scene.airflow.request("PATCH", path, {"chosen_options": [choice], "params_input": {}})
    assert done.status_code == 200, done.text


def as_superuser(scene: Scene, **options: Any) -> MemberSql:
    """The leader's PostgreSQL."""
    node, user = scene.lab.nodes[scene.leader], str(scene.lab.info["superuser"])
    login = {"login": user, "password": scene.lab.info["users"][user], "extra": json.dumps(scene.lab.libpq)}
    connection = Connection(conn_id="lab", conn_type="postgres", schema="app", **login)
    return MemberSql(connection, node.name, node.host, node.port, **options)


def test_a_good_deployment_is_kept_on_every_member(scene: Scene) -> None:
    run_id = scene.trigger("deploy", sql=GOOD_MIGRATION, checks=CHECKS, label="release 2")
    # as a pipeline waits for it, by the README
    path = f"dags/bluegreen_deploy/dagRuns/{run_id}/wait?interval=2&result=report"
    lines = scene.airflow.request("GET", path).text.splitlines()
    assert len(lines) > 1, lines
    last = json.loads(lines[-1])
    assert (last["state"], last["results"]["report"]["result"]) == ("success", "deployed"), lines
    verdict(scene.lab, before=scene.fresh, rows=contents(scene.lab, scene.leader))
    assert contents(scene.lab, scene.leader) != scene.rows


def test_failed_checks_roll_back(scene: Scene) -> None:
    run_id, state, report = deploy(scene, sql=BAD_MIGRATION, checks=CHECKS)
    assert (state, report["result"]) == ("failed", "rolled_back"), report
    assert "check 2 of 2 is not true" in report["message"]
    record = report["checkpoint"]
    assert record["deployment"]["run_id"] == run_id
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=record["held"], after_xid=record["xid"])


def test_a_check_with_a_large_answer_does_not_fill_the_memory(clean: Scene) -> None:
    begin = psutil.Process().memory_info().rss
    with as_superuser(clean, read_only=True) as sql:
        rows = sql.first_rows("select true as well from pg_class a, pg_class b, pg_class c", doing="check 1")
        assert rows == [{"well": True}] * 2
        assert sql.first_rows("select true as well", doing="check 2") == [{"well": True}], "the rest was not cancelled"
    assert psutil.Process().memory_info().rss - begin < 64 * 1024**2


def test_a_statement_ends_on_the_server_when_its_task_is_out_of_time(clean: Scene) -> None:
    active = "select count(*) from pg_stat_activity where query = 'select pg_sleep(900)' and state = 'active'"
    with (
        as_superuser(clean, statement_timeout_ms=0) as sql,
        pytest.raises(AirflowTaskTimeout),
        TimeoutPosix(2),
    ):
        sql.run("select pg_sleep(900)", doing="the deployment")
    wait_for("it ends", lambda: clean.lab.value(clean.leader, active, database="postgres") == 0, seconds=5)


def test_a_command_finds_the_primary_and_its_failure_rolls_back(scene: Scene) -> None:
    command = (
        "env | grep -E '^_?AIRFLOW_' | grep -vE '^AIRFLOW_(HOME=|CTX_)' && exit 4; "
        "psql -X -v ON_ERROR_STOP=1 -c 'set role release; create table by_command as select 1 as i' && "
        "psql -XAtc 'select not pg_is_in_recovery()' | grep -qx t && exit 3"
    )
    _, state, report = deploy(scene, command=command, checks=CHECKS)
    assert (state, report["result"]) == ("failed", "rolled_back"), report
    assert "ended with status 3" in report["message"]
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=report["checkpoint"]["held"])


def test_a_deployment_may_be_one_transaction(scene: Scene) -> None:
    one = "begin;\nset role release;\ncreate table by_begin as select 1 as i;\ncommit;\n"
    _, state, report = deploy(scene, sql=one, checks=["select count(*) = 1 from by_begin"])
    assert (state, report["result"]) == ("success", "deployed"), report
    verdict(scene.lab, before=scene.fresh, rows=contents(scene.lab, scene.leader))


def test_what_fails_before_it_began_is_not_rolled_back(scene: Scene) -> None:
    path = CHECKOUT / "include" / "demo" / "for_a_moment.sql"
    path.write_text(GOOD_MIGRATION)
    try:
        run_id = scene.trigger("deploy", sql="demo/for_a_moment.sql", checks=CHECKS)
        wait_for("it is planned", lambda: scene.task("deploy", run_id, "plan") == "success", seconds=200)
    finally:
        path.unlink()
    state = scene.airflow.wait("bluegreen_deploy", run_id, seconds=400)
    report = scene.airflow.xcom("bluegreen_deploy", run_id, "report")
    assert (state, report["result"]) == ("failed", "failed"), report
    assert report["message"].startswith("Nothing was deployed. "), report
    assert scene.is_in("deploy", run_id, "roll_back", "skipped")
    verdict(scene.lab, before=scene.fresh, rows=scene.rows)


@pytest.mark.whole
def test_half_a_deployment_is_not_kept_because_its_second_pass_fails_before_it_begins(scene: Scene) -> None:
    path = CHECKOUT / "include" / "demo" / "for_a_moment.sql"
    waiting = ("awaiting_input", "deferred")
    try:
        path.write_text("set role release;\ncreate table half as select 1 as i;\nselect 1 / 0;\n")
        run_id = scene.trigger("deploy", sql="demo/for_a_moment.sql", checks=CHECKS, decision="ask")
        wait_for("a person is asked", lambda: scene.is_in("deploy", run_id, "ask", *waiting), seconds=200)
        path.write_text("begin;\nselect 1;\n")
        first = scene.airflow.xcom("bluegreen_deploy", run_id, "deploy", key="problem")
        scene.clear("deploy", run_id, "deploy")

        def failed_again() -> bool:
            again = scene.airflow.xcom("bluegreen_deploy", run_id, "deploy", key="problem")
            return again != first and scene.is_in("deploy", run_id, "ask", *waiting)

        wait_for("the person is asked again", failed_again, seconds=200)
    finally:
        path.unlink()
    problem = scene.airflow.xcom("bluegreen_deploy", run_id, "deploy", key="problem")
    assert "begins a transaction and does not end it" in problem["message"], problem
    answer(scene, run_id, "Roll back")
    scene.airflow.wait("bluegreen_deploy", run_id, seconds=400)
    report = scene.airflow.xcom("bluegreen_deploy", run_id, "report")
    assert report["result"] == "rolled_back", report
    record = report["checkpoint"]
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=record["held"], after_xid=record["xid"])


def test_without_a_checkpoint_nothing_is_deployed(scene: Scene) -> None:
    scene.checkpoint(label="somebody else's")
    _, state, report = deploy(scene, sql=BAD_MIGRATION, checks=CHECKS)
    assert (state, report["result"]) == ("failed", "refused"), report
    assert "Nothing was deployed" in report["message"] and scene.record["id"] in report["message"]
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, held=scene.held)


def test_a_person_is_asked_and_decides(scene: Scene) -> None:
    run_id = scene.trigger("deploy", sql=GOOD_MIGRATION, checks=CHECKS, decision="ask")
    airflow = scene.airflow

    waiting = ("awaiting_input", "deferred")
    wait_for("the run waits for a person", lambda: scene.is_in("deploy", run_id, "ask", *waiting), seconds=200)
    answer(scene, run_id, "Roll back")
    airflow.wait("bluegreen_deploy", run_id, seconds=400)
    report = airflow.xcom("bluegreen_deploy", run_id, "report")
    assert report["result"] == "rolled_back", report
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=report["checkpoint"]["held"])


@pytest.mark.whole
def test_while_a_deployment_runs_nobody_else_ends_its_checkpoint(scene: Scene) -> None:
    run_id = scene.deploying("sleep 45", CHECKS)
    for dag, conf in (("resume", {}), ("rollback", scene.rollback_conf())):
        sentence = scene.refused(dag, **conf)
        assert "which is still running" in sentence and run_id in sentence
    report = scene.finish("deploy", run_id)
    assert report["result"] == "deployed"


def test_a_killed_worker_finds_the_same_child_again(scene: Scene) -> None:
    run_id = scene.trigger("deploy", sql=GOOD_MIGRATION, checks=CHECKS)
    wait_for(
        "the parent triggers", lambda: scene.is_in("deploy", run_id, "take_checkpoint", "running"), 120, every=0.02
    )
    scene.kill_task("deploy", run_id, "take_checkpoint")
    report = scene.finish("deploy", run_id)
    assert report["result"] == "deployed", report
    children = scene.airflow.get("dags/bluegreen_checkpoint/dagRuns", limit=100, order_by="-start_date")["dag_runs"]
    assert [run["dag_run_id"] for run in children if run["dag_run_id"].startswith(run_id)] == [
        f"{run_id}__bluegreen_checkpoint__0"
    ]
