"""A deployment runs once, what its text must be, and what its command is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bluegreen.exceptions import FailedForNowError, RefusedError, RegistryError
from bluegreen.operators.decide import DecideOperator
from bluegreen.operators.deploy import RunDeploymentOperator, command_environment, split_sql

SECRET = (
    "AIRFLOW_CONN_ORDERS_SSH",
    "AIRFLOW_VAR_TOKEN",
    "AIRFLOW_UI_PASSWORDS",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "_AIRFLOW_WWW_USER_PASSWORD",
    "PGPASSWORD",
    "PGSERVICEFILE",
)
KEPT = ("PATH", "HOME", "HTTPS_PROXY", "AIRFLOW_HOME", "AIRFLOW_CTX_DAG_RUN_ID", "BLUEGREEN_CLUSTERS")


def test_a_command_gets_no_secret_of_its_worker() -> None:
    worker = dict.fromkeys((*SECRET, *KEPT), "x")
    assert command_environment(worker) == dict.fromkeys(KEPT, "x")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("begin; update a set b = 1; commit;", 3),
        ("-- a comment\nStart Transaction; select 1; END", 3),
        ("begin; savepoint s; rollback to s; rollback", 4),
        ("begin; commit and chain; select 1; commit and no chain", 4),
        ("create function f() returns int language plpgsql as $$ begin return 1; end $$; select f()", 2),
        (" ;; /* nothing */ ; select 1; -- the end", 1),
        ("insert into a values " + ", ".join(f"({i}, 'text')" for i in range(20_000)), 1),
    ],
)
def test_a_text_is_split_into_its_statements(text: str, count: int) -> None:
    assert len(split_sql(text)) == count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("begin; update a set b = 1;", "does not end it"),
        ("begin; savepoint s; rollback to savepoint s", "does not end it"),
        ("begin; commit and chain;", "does not end it"),
        ("-- nothing\n;", "holds no statement"),
        ("select 1;\n\\i other.sql", "line 2 is a command of psql"),
    ],
)
def test_a_text_that_would_fail_half_way_is_refused(text: str, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        split_sql(text)


class Store(dict[str, Any]):
    """Airflow's task state store; one that is broken keeps nothing."""

    broken = False

    def set(self, key: str, value: Any, *, retention: Any) -> None:
        if not self.broken:
            self[key] = value


def pass_of(store: Store, max_tries: int = 0) -> dict[str, Any]:
    """Let the task begin; return what it pushed."""
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(max_tries=max_tries, xcom_push=lambda key, value: pushed.update({key: value}))
    operator = RunDeploymentOperator(task_id="deploy", cluster="orders")
    try:
        operator._begin({"ti": ti, "task_state_store": store}, "bg_1")  # type: ignore[typeddict-item]
    except RefusedError as error:
        return pushed | {"refused": str(error)}
    return pushed


def test_a_deployment_that_was_cut_off_does_not_run_twice_unless_a_person_clears_it() -> None:
    store = Store()
    assert pass_of(store) == {"begun": True}
    again = pass_of(store)
    assert again["begun"] and "does not run a second time" in again["refused"]
    assert pass_of(store, max_tries=1) == {"begun": True}
    assert "does not run a second time" in pass_of(store, max_tries=1)["refused"]


@pytest.mark.parametrize(
    ("before", "taken", "begun"),
    [
        (None, {"bg_1"}, False),
        ({"max_tries": 0, "checkpoint": "bg_1"}, {"bg_1"}, True),
        ({"max_tries": 0, "checkpoint": "bg_1"}, set(), True),
        # all of the run was cleared, and what had begun is rolled back, or live
        ({"max_tries": 0, "checkpoint": "bg_1"}, {"bg_2"}, False),
        # kept by a release that did not say for which
        ({"max_tries": 0}, {"bg_2"}, True),
    ],
)
def test_a_pass_says_at_once_whether_one_had_begun_under_the_same_checkpoint(
    before: Any, taken: set[str], begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluegreen.operators.deploy.checkpoints_of_run", lambda _: taken)
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    store = Store({"begun": before} if before else {})
    operator = RunDeploymentOperator(task_id="deploy", cluster="nobody's")
    with pytest.raises(RegistryError):
        operator.execute({"ti": ti, "task_state_store": store})  # type: ignore[typeddict-item]
    assert pushed["begun"] is begun


def test_what_cannot_be_kept_is_not_begun() -> None:
    store = Store()
    store.broken = True
    with pytest.raises(FailedForNowError, match="nothing was deployed"):
        pass_of(store)


@pytest.mark.parametrize("decision", ["auto", "ask"])
@pytest.mark.parametrize(
    ("deploy", "checks", "begun", "follows"),
    [
        ("success", "success", True, "resume"),
        ("success", "failed", True, "roll_back"),
        ("failed", "upstream_failed", True, "roll_back"),
        ("failed", "upstream_failed", False, "resume"),
        # of one that could not say so, or was ended by hand, nobody knows
        ("failed", "upstream_failed", None, "roll_back"),
        ("upstream_failed", "upstream_failed", None, "roll_back"),
        ("skipped", "skipped", None, "roll_back"),
        ("skipped", "skipped", False, "roll_back"),
    ],
)
def test_only_what_had_begun_is_rolled_back(
    deploy: str, checks: str, begun: bool | None, follows: str, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"held": "success", "deploy": deploy, "checks": checks}
    monkeypatch.setattr("bluegreen.operators.decide.task_states", lambda *_: states)
    operator = DecideOperator(
        task_id="decide",
        held="held",
        proofs=("deploy", "checks"),
        resume="resume",
        rollback="roll_back",
        ask="ask",
        decision=decision,
    )
    ti = SimpleNamespace(xcom_pull=lambda task_ids, key: begun if (task_ids, key) == ("deploy", "begun") else None)
    asked = decision == "ask" and not (deploy == "failed" and begun is False)
    assert operator.choose_branch({"ti": ti}) == ("ask" if asked else follows)  # type: ignore[typeddict-item]
