"""The DAGs as Airflow loads them: names, params, ends, and what they are made of."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.definitions._internal.types import NOTSET

DAG_IDS = {f"bluegreen_{name}" for name in ("checkpoint", "deploy", "resume", "rollback", "monitor")}
OPERATIONS = sorted(DAG_IDS - {"bluegreen_monitor"})
REQUIRED = object()

# design.md, "Names that users and tests rely on".
PARAMS: dict[str, dict[str, Any]] = {
    "bluegreen_checkpoint": {"cluster": REQUIRED, "label": "", "standby": None, "break_lock": None},
    "bluegreen_deploy": {
        "cluster": REQUIRED,
        "label": "",
        "deployment": None,
        "decision": "auto",
        "command": None,
        "sql": None,
        "checks": [],
    },
    "bluegreen_resume": {"cluster": REQUIRED, "checkpoint": None, "break_lock": None},
    "bluegreen_rollback": {
        "cluster": REQUIRED,
        "checkpoint": REQUIRED,
        "confirm": REQUIRED,
        "reason": "",
        "rejoin": "auto",
        "hosts_down": [],
        "take_over": False,
        "break_lock": None,
    },
    "bluegreen_monitor": {},
}


@pytest.fixture(scope="session")
def dagbag(airflow_db: None, project_root: Path) -> Any:
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(project_root / "dags")


@pytest.fixture
def dags(dagbag: Any) -> dict[str, Any]:
    return dict(dagbag.dags)


def _leaves(dag: Any) -> set[str]:
    return {task.task_id for task in dag.tasks if not task.downstream_task_ids}


def test_no_dag_has_an_import_error(dagbag: Any) -> None:
    assert dagbag.import_errors == {}


def test_reading_the_files_again_makes_no_new_version_of_a_dag(dags: dict[str, Any], project_root: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.serialized_objects import DagSerialization

    first, second = (
        {dag_id: SerializedDagModel.hash(DagSerialization.to_dict(dag)) for dag_id, dag in found.items()}
        for found in (dags, DagBag(project_root / "dags").dags)
    )
    assert set(first) == DAG_IDS
    assert first == second


def test_there_are_these_dags_and_no_others(dags: dict[str, Any]) -> None:
    assert set(dags) == DAG_IDS


def test_each_dag_has_a_file_of_its_name(dags: dict[str, Any]) -> None:
    assert {dag_id: Path(dag.fileloc).name for dag_id, dag in dags.items()} == {
        dag_id: f"{dag_id}.py" for dag_id in DAG_IDS
    }


@pytest.mark.parametrize("dag_id", sorted(DAG_IDS))
def test_a_dag_explains_itself(dags: dict[str, Any], dag_id: str) -> None:
    assert dags[dag_id].doc_md and dags[dag_id].doc_md.startswith("### ")
    assert dags[dag_id].tags == {"bluegreen"}


@pytest.mark.parametrize("dag_id", sorted(PARAMS))
def test_the_params_and_their_defaults(dags: dict[str, Any], dag_id: str) -> None:
    found = {}
    for name in dags[dag_id].params:
        param = dags[dag_id].params.get_param(name)
        found[name] = REQUIRED if param.value is NOTSET else param.value
    assert found == PARAMS[dag_id]


@pytest.mark.parametrize("dag_id", sorted(PARAMS))
def test_every_param_says_what_it_is(dags: dict[str, Any], dag_id: str) -> None:
    for name in dags[dag_id].params:
        param = dags[dag_id].params.get_param(name)
        assert param.schema.get("title") and (param.description or param.schema.get("description")), name


def _bad(dag: Any, name: str, value: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dag.params.get_param(name).resolve(value)


@pytest.mark.parametrize("dag_id", OPERATIONS)
@pytest.mark.parametrize("value", ["", None, 1, ["orders"], {"a": 1}])
def test_a_run_without_a_cluster_is_not_accepted(dags: dict[str, Any], dag_id: str, value: object) -> None:
    _bad(dags[dag_id], "cluster", value)


@pytest.mark.parametrize(
    ("dag_id", "name", "values"),
    [
        ("bluegreen_deploy", "decision", ["", "AUTO", "resume", None]),
        ("bluegreen_deploy", "checks", ["select 1", [1], None]),
        ("bluegreen_deploy", "deployment", [1, ["release"]]),
        ("bluegreen_checkpoint", "label", [None, 1, ["a"]]),
        ("bluegreen_checkpoint", "standby", [1, ["n1"]]),
        ("bluegreen_rollback", "checkpoint", ["", None, 1]),
        ("bluegreen_rollback", "confirm", ["", None, True]),
        ("bluegreen_rollback", "rejoin", ["", "copy", None]),
        ("bluegreen_rollback", "hosts_down", ["n1", [1], None]),
        ("bluegreen_rollback", "take_over", ["true", 1, None]),
    ],
)
def test_a_value_of_another_kind_is_not_accepted(
    dags: dict[str, Any], dag_id: str, name: str, values: list[object]
) -> None:
    for value in values:
        _bad(dags[dag_id], name, value)


@pytest.mark.parametrize("dag_id", OPERATIONS)
def test_an_operation_ends_in_its_report_and_a_leaf_that_decides(dags: dict[str, Any], dag_id: str) -> None:
    dag = dags[dag_id]
    assert _leaves(dag) == {"outcome"}
    report, outcome = dag.get_task("report"), dag.get_task("outcome")
    assert outcome.upstream_task_ids == {"report"} and report.downstream_task_ids == {"outcome"}
    assert report.trigger_rule == outcome.trigger_rule == "all_done"
    assert {task.task_id for task in dag.tasks} - {"report", "outcome"} == report.get_flat_relative_ids(upstream=True)
    assert (
        outcome.good
        == {
            "bluegreen_checkpoint": ("held",),
            "bluegreen_deploy": ("deployed",),
            "bluegreen_resume": ("resumed",),
            "bluegreen_rollback": ("rolled_back",),
        }[dag_id]
    )
    assert outcome.retries == 0


@pytest.mark.parametrize("dag_id", OPERATIONS)
def test_an_operation_is_never_scheduled(dags: dict[str, Any], dag_id: str) -> None:
    assert dags[dag_id].schedule is None and not dags[dag_id].timetable.can_be_scheduled


def test_a_rollback_is_started_by_a_person_or_by_the_deployment_only(dags: dict[str, Any]) -> None:
    allowed = dags["bluegreen_rollback"].allowed_run_types
    assert {getattr(kind, "value", kind) for kind in allowed} == {"manual", "operator_triggered"}


def test_the_monitor_looks_every_minute_and_never_twice_at_once(dags: dict[str, Any]) -> None:
    monitor = dags["bluegreen_monitor"]
    assert monitor.schedule == "* * * * *" and not monitor.catchup and monitor.max_active_runs == 1


def test_the_scheduler_knows_that_a_member_is_rejoined_again(dags: dict[str, Any]) -> None:
    rejoin = dags["bluegreen_rollback"].get_task("rejoin")
    assert (rejoin.retries, rejoin.retry_delay.total_seconds()) == (2, 2)


@pytest.mark.parametrize(("dag_id", "task_id"), [("bluegreen_monitor", "look"), ("bluegreen_rollback", "rejoin")])
def test_a_mapped_task_has_the_defaults_of_its_class_and_not_those_of_the_company(
    dags: dict[str, Any], dag_id: str, task_id: str
) -> None:
    mapped = dags[dag_id].get_task(task_id)
    plain = mapped.operator_class(task_id="plain", **({"member": "n1"} if task_id == "rejoin" else {}))
    for name in ("retries", "retry_delay", "retry_policy", "execution_timeout"):
        assert mapped.partial_kwargs[name] == getattr(plain, name), name
    assert plain.retry_policy is not None and plain.execution_timeout is not None


@pytest.mark.parametrize("dag_id", sorted(DAG_IDS))
def test_a_task_is_tried_again_soon_or_not_at_all(dags: dict[str, Any], dag_id: str) -> None:
    for task in dags[dag_id].tasks:
        assert not task.retries or task.retry_delay.total_seconds() <= 5, task.task_id


def test_a_deployment_is_never_repeated_by_itself(dags: dict[str, Any]) -> None:
    assert dags["bluegreen_deploy"].get_task("deploy").retries == 0


def test_a_rollback_stops_everybody_then_recovers_then_removes_then_starts(dags: dict[str, Any]) -> None:
    rollback = dags["bluegreen_rollback"]
    order = ["plan", "stop", "recover", "remove_cluster", "start_leader", "rejoin", "close", "unlock"]
    for first, then in pairwise(order):
        assert then in rollback.get_task(first).downstream_task_ids


def test_a_rollback_without_anybody_to_rejoin_is_closed_all_the_same(dags: dict[str, Any]) -> None:
    assert dags["bluegreen_rollback"].get_task("close").trigger_rule == "none_failed"


def test_a_failure_before_the_point_of_no_return_is_put_back_before_the_lock_is_given_back(
    dags: dict[str, Any],
) -> None:
    put_back = dags["bluegreen_rollback"].get_task("put_back")
    assert {"stop", "recover"} <= put_back.upstream_task_ids and "unlock" in put_back.downstream_task_ids
    assert put_back.trigger_rule != "all_success"
    for dag_id in ("bluegreen_checkpoint", "bluegreen_resume", "bluegreen_rollback"):
        unlock = dags[dag_id].get_task("unlock")
        assert unlock.trigger_rule == "all_done" and unlock.downstream_task_ids == {"report"}


def _our_classes(dags: dict[str, Any]) -> list[type]:
    found = set()
    for dag in dags.values():
        for task in dag.tasks:
            found.add(task.operator_class if task.is_mapped else type(task))
    return sorted((kind for kind in found if kind.__module__.startswith("bluegreen.")), key=lambda kind: kind.__name__)


def test_every_operator_that_a_dag_uses_explains_itself_and_names_its_templates(dags: dict[str, Any]) -> None:
    classes = _our_classes(dags)
    assert len(classes) > 10
    for kind in classes:
        documentation = kind.__doc__ or ""
        example = documentation.partition("Example::")[2]
        assert f"{kind.__name__}(" in example or f"{kind.__name__}.partial(" in example, kind
        fields = kind.template_fields
        assert isinstance(fields, list | tuple) and all(isinstance(name, str) for name in fields), kind


def test_every_template_field_is_an_attribute(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        for task in dag.tasks:
            if not task.is_mapped:
                for name in task.template_fields:
                    assert hasattr(task, name), (task, name)


@pytest.mark.parametrize("dag_id", sorted(DAG_IDS))
def test_a_dag_file_only_names_operators_and_orders_them(project_root: Path, dag_id: str) -> None:
    tree = ast.parse((project_root / "dags" / f"{dag_id}.py").read_text())
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.For, ast.While, ast.Try)
    found = [f"line {node.lineno}: {type(node).__name__}" for node in ast.walk(tree) if isinstance(node, logic)]
    assert found == []


LOAD_PLUGINS = """
import json, os, sys
import airflow
from airflow import plugins_manager
before = {name: module for name, module in sys.modules.items()}
plugins, errors = plugins_manager._get_plugins()
folder = os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"]
ours = sorted(
    name for name, module in sys.modules.items() if str(getattr(module, "__file__", None) or "").startswith(folder)
)
replaced = sorted(name for name, module in before.items() if sys.modules.get(name) is not module)
print(json.dumps({
    "plugins": [plugin.name for plugin in plugins], "errors": errors, "ours": ours, "replaced": replaced,
}))
"""


def test_the_plugins_folder_brings_one_plugin_and_no_foreign_module(project_root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_PLUGINS],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert "bluegreen" in found["plugins"] and found["errors"] == {}
    assert [name for name in found["ours"] if name.split(".")[0] not in {"bluegreen", "bluegreen_plugin"}] == []
    assert "bluegreen_plugin" in found["ours"] and found["replaced"] == []


GOOD = "patroni: [http://10.0.0.1:8008], postgres_conn_id: pg, ssh_conn_id: ssh"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (None, []),
        ("", []),
        ("clusters: [", []),
        ("clusters: {orders: {patroni: 5}}", []),
        (f"clusters: {{orders: {{{GOOD}, nonsense: 1}}, books: {{{GOOD}}}}}", ["books"]),
        ("\x00\x01", []),
    ],
)
def test_with_a_broken_registry_all_dags_load_and_the_other_clusters_go_on(
    airflow_db: None,
    project_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    known: list[str],
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    registry = tmp_path / "clusters.yaml"
    if text is not None:
        registry.write_text(text)
    monkeypatch.setenv("BLUEGREEN_CLUSTERS", str(registry))
    found = DagBag(project_root / "dags")
    assert found.import_errors == {} and set(found.dags) == DAG_IDS
    for dag_id in OPERATIONS:
        assert found.dags[dag_id].params.get_param("cluster").schema["examples"] == known
