"""The report of a run, from what its tasks left."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from tests.faults.sentences import CLAIMS

from bluegreen.exceptions import FailedForNowError, UnreachableError
from bluegreen.operators import report as report_module
from bluegreen.operators.report import DeployReportOperator, OutcomeOperator, ReportOperator
from bluegreen.topology import Member, Topology

TOPOLOGY = Topology(
    (
        Member("n1", "replica", "streaming", "h1", 5432, "x", timeline=2),
        Member("n2", "leader", "running", "h2", 5432, "x", timeline=2),
    )
)


class TaskInstance:
    """What the operators ask Airflow for."""

    dag_id = "bluegreen_test"
    run_id = "manual__1"

    def __init__(self, states: dict[str, Any], xcoms: dict[tuple[str, str], Any]) -> None:
        self.states = states
        self.xcoms = xcoms

    def get_task_states(
        self, *, dag_id: str, run_ids: list[str], task_ids: list[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        assert (dag_id, run_ids) == (self.dag_id, [self.run_id])
        return {self.run_id: self.states} if self.states else {}

    def xcom_pull(self, *, task_ids: str, key: str = "return_value") -> Any:
        return self.xcoms.get((task_ids, key))


class Run:
    triggering_user_name = "ada"


@pytest.fixture(autouse=True)
def topology(monkeypatch: pytest.MonkeyPatch) -> list[Topology | Exception]:
    """What Patroni answers; a test may put an error there."""
    answers: list[Topology | Exception] = [TOPOLOGY]

    class Patroni:
        def topology(self) -> Topology:
            if isinstance(answers[-1], Exception):
                raise answers[-1]
            return answers[-1]

    class Hook:
        patroni = Patroni()

        def __init__(self, name: str) -> None:
            assert name == "orders"

        def __enter__(self) -> Hook:
            return self

        def __exit__(self, *exc_info: object) -> None:
            pass

        def member_states(self, topology: Topology) -> dict[str, dict[str, object]]:
            return {
                member.name: {"role": member.role, "timeline": member.timeline, "state": member.state}
                for member in topology.members
            }

    monkeypatch.setattr(report_module, "ClusterHook", Hook)
    return answers


Report = Callable[..., dict[str, Any]]


def _report(
    operation: str,
    states: dict[str, Any],
    results: dict[str, Any] | None = None,
    problems: dict[str, Any] | None = None,
    tasks: tuple[str, ...] = (),
    changed: dict[str, str] | None = None,
) -> dict[str, Any]:
    success = {"checkpoint": "held", "resume": "resumed", "rollback": "rolled_back"}[operation]
    names = tasks or tuple(dict.fromkeys(name.removesuffix("_0").removesuffix("_1") for name in states))
    with DAG("bluegreen_test", schedule=None):
        operator = ReportOperator(
            task_id="report",
            operation=operation,
            success=success,
            first=names[0],
            undoing=("undo", "put_back"),
            cluster="orders",
        )
        for name in names:
            EmptyOperator(task_id=name) >> operator
    xcoms = {(name, "return_value"): value for name, value in (results or {}).items()}
    xcoms |= {(name, "problem"): value for name, value in (problems or {}).items()}
    xcoms |= {(name, "changed"): value for name, value in (changed or {}).items()}
    report = operator.execute({"ti": TaskInstance(states, xcoms), "dag_run": Run()})  # type: ignore[arg-type]
    json.dumps(report)
    if report["result"] in ("failed", "refused"):
        claimed = [claim for claim in CLAIMS[operation] if re.search(claim, report["message"])]
        assert len(claimed) == 1, f"the matrix of faults cannot judge {report['message']!r}: {claimed}"
    return report


def _problem(message: str, kind: str = "RefusedError") -> dict[str, str]:
    return {"kind": kind, "message": message}


CHECKPOINT = {
    "id": "bg_1",
    "held": "n2",
    "xid": 747,
    "lsn": "0/40E0458",
    "timeline": 1,
    "revision": 3,
    "phase": "held",
    "expires_at": "2026-11-25T14:00:00+00:00",
}


UNPROVEN = "n2, the held member, cannot be read. When it answers again, run bluegreen_rollback again: it goes on"

# What every report has


def test_a_report_has_all_that_is_promised() -> None:
    report = _report("checkpoint", {"check": "success"})
    assert set(report) >= {
        *("cluster", "operation", "result", "message", "checkpoint", "members", "seconds", "warnings")
    }
    assert (report["cluster"], report["operation"], report["requested_by"]) == ("orders", "checkpoint", "ada")


def test_the_members_are_what_patroni_says_and_how_each_came_back() -> None:
    report = _report(
        "rollback",
        {"plan": "success", "rejoin_0": "success"},
        {"rejoin": [{"member": "n1", "rejoined_by": "rewind"}, {"member": "n9", "rejoined_by": "clone"}]},
    )
    assert report["members"] == {
        "n1": {"role": "replica", "timeline": 2, "state": "streaming", "rejoined_by": "rewind"},
        "n2": {"role": "leader", "timeline": 2, "state": "running"},
        "n9": {"rejoined_by": "clone"},
    }


def test_a_cluster_that_does_not_answer_does_not_cost_the_report(topology: list[Topology | Exception]) -> None:
    topology.append(UnreachableError("nobody"))
    report = _report("checkpoint", {"check": "failed"}, problems={"check": _problem("nobody", "UnreachableError")})
    assert report["members"] == {} and report["result"] == "failed"


def test_seconds_are_those_of_each_task_and_of_a_mapped_one_the_longest() -> None:
    report = _report(
        "rollback",
        {"plan": "success", "rejoin_0": "success", "rejoin_1": "success"},
        {"plan": {"seconds": 0.5}, "rejoin": [{"seconds": 4.0}, {"seconds": 9.5}]},
    )
    assert report["seconds"] == {"plan": 0.5, "rejoin": 9.5}


def test_each_warning_is_given_once() -> None:
    report = _report(
        "resume",
        {"check": "success", "release": "success"},
        {"check": {"warnings": ["a", "b"]}, "release": {"warnings": ["b", "c"]}},
    )
    assert report["warnings"] == ["a", "b", "c"]


def test_the_record_with_the_highest_revision_is_shown() -> None:
    report = _report(
        "checkpoint",
        {"a_record": "success", "mark": "success"},
        {"a_record": {"checkpoint": CHECKPOINT}, "mark": {"checkpoint": {**CHECKPOINT, "revision": 2}}},
    )
    assert report["checkpoint"] == CHECKPOINT


def test_a_rollback_tells_what_was_discarded_and_why() -> None:
    discarded = {"wal_bytes": 4096, "transactions": 7, "seconds": 61.0}
    report = _report("rollback", {"plan": "success"}, {"plan": {"discarded": discarded, "reason": "wrong numbers"}})
    assert report["discarded"] == discarded and report["reason"] == "wrong numbers"


# Success


@pytest.mark.parametrize("state", ["success", "skipped"])
def test_a_run_whose_tasks_all_ended_well_has_succeeded(state: str) -> None:
    report = _report("checkpoint", {"check": "success", "hold": state, "undo": "skipped"})
    assert report["result"] == "held"


def test_states_may_be_enums() -> None:
    from airflow.utils.state import TaskInstanceState

    assert _report("checkpoint", {"check": TaskInstanceState.SUCCESS})["result"] == "held"
    assert _report("checkpoint", {"check": TaskInstanceState.FAILED})["result"] == "failed"


def test_a_checkpoint_is_told_by_its_mark() -> None:
    message = _report("checkpoint", {"check": "success"}, {"check": {"checkpoint": CHECKPOINT}})["message"]
    for part in ("n2", "747", "0/40E0458", "timeline 1", "bg_1", "2026-11-25T14:00:00+00:00"):
        assert part in message


def test_a_resume_is_told_by_the_standby() -> None:
    message = _report("resume", {"check": "success"}, {"check": {"checkpoint": CHECKPOINT}})["message"]
    assert message == "n2 goes on and has caught up; checkpoint bg_1 is closed."


def test_a_rollback_is_told_with_its_proof_and_what_is_left_to_do() -> None:
    report = _report(
        "rollback",
        {"plan": "success", "recover": "success"},
        {"plan": {"checkpoint": CHECKPOINT}, "recover": {"branch_line": "1\t0/40E0458\tafter transaction 747"}},
    )
    assert report["result"] == "rolled_back" and report["branch_line"].endswith("after transaction 747")
    for part in ("n2 is the leader", "before transaction 747", "after transaction 747", "backup", "logical slots"):
        assert part in report["message"]


# Failure


@pytest.mark.parametrize("state", ["failed", "upstream_failed"])
def test_one_task_that_failed_makes_the_run_fail(state: str) -> None:
    assert _report("resume", {"check": "success", "release": state})["result"] == "failed"


@pytest.mark.parametrize(
    ("states", "unknown"),
    [
        ({}, "check"),
        ({"check": "success"}, "release"),
        ({"check": "success", "release": None}, "release"),
        ({"check": "success", "release": "running"}, "release"),
    ],
)
def test_a_task_of_which_nothing_is_known_is_no_success(states: dict[str, Any], unknown: str) -> None:
    report = _report("resume", states, tasks=("check", "release"))
    assert report["result"] == "failed" and f"The task {unknown} ended without a sentence" in report["message"]


def test_one_member_that_failed_among_several_makes_the_run_fail() -> None:
    report = _report(
        "rollback",
        {"plan": "success", "rejoin_0": "success", "rejoin_1": "failed"},
        problems={"rejoin": [_problem("n3 is not there", "UnreachableError")]},
    )
    assert report["result"] == "failed" and report["message"].startswith("n3 is not there.")


def test_each_member_that_failed_among_several_is_told_once() -> None:
    report = _report(
        "rollback",
        {"plan": "success", "rejoin_0": "failed", "rejoin_1": "failed", "rejoin_2": "failed"},
        {"plan": {"checkpoint": {**CHECKPOINT, "phase": "taken_over"}}},
        {
            "rejoin": [
                _problem("n1 has no room", "FailedForNowError"),
                _problem("n3 is not there.", "UnreachableError"),
                _problem("n1 has no room", "FailedForNowError"),
            ]
        },
        tasks=("plan", "rejoin"),
    )
    assert report["message"].startswith("n1 has no room. n3 is not there. n2 is promoted at the mark")


def test_a_task_whose_name_begins_like_anothers_is_not_taken_for_it() -> None:
    with DAG("bluegreen_test", schedule=None):
        operator = ReportOperator(
            task_id="report", operation="resume", success="resumed", first="stop", cluster="orders"
        )
        EmptyOperator(task_id="stop") >> operator
    ti = TaskInstance({"stop": "success", "stop_leader": "failed", "stop_0x": "failed"}, {})
    assert operator.execute({"ti": ti, "dag_run": Run()})["result"] == "resumed"  # type: ignore[arg-type, typeddict-item]


@pytest.mark.parametrize("kind", ["RefusedError", "RegistryError", "CheckpointLostError", "LockedError"])
def test_what_the_first_task_refuses_is_refused_and_nothing_was_changed(kind: str) -> None:
    report = _report(
        "rollback",
        {"plan": "failed", "stop": "upstream_failed", "put_back": "success"},
        {"put_back": {"put_back": False, "untouched": True}},
        {"plan": _problem("confirm is 'x'; expected orders", kind)},
    )
    assert report["result"] == "refused"
    assert report["message"] == "confirm is 'x'; expected orders. Nothing was changed."


@pytest.mark.parametrize(
    ("put_back", "sentence"),
    [
        (
            {"put_back": True, "lost": "", "checkpoint": CHECKPOINT},
            "The old cluster was put back into service, with the deployment in it; the checkpoint is still held, and "
            "was proven again. Mend what the sentence names, then run bluegreen_rollback again.",
        ),
        (
            {"put_back": True, "lost": "checkpoint bg_1 is lost: no WAL; take a new one", "checkpoint": CHECKPOINT},
            "but checkpoint bg_1 is lost: no WAL; take a new one. Run bluegreen_resume",
        ),
        ({"put_back": True, "unproven": UNPROVEN, "checkpoint": CHECKPOINT}, f"deployment in it; but {UNPROVEN}."),
        ({"put_back": False, "locked_out": True, "checkpoint": CHECKPOINT}, "it put nothing back"),
        ({"put_back": False, "checkpoint": {**CHECKPOINT, "phase": "promoted"}}, "n2 is promoted at the mark"),
        (None, "Putting the old cluster back into service failed too: n1 does not start. Whether the held member is"),
    ],
)
def test_a_refused_rollback_says_what_putting_back_after_a_former_one_did(
    put_back: dict[str, Any] | None, sentence: str
) -> None:
    report = _report(
        "rollback",
        {"plan": "failed", "stop": "upstream_failed", "put_back": "success" if put_back else "failed"},
        {"put_back": put_back} if put_back else {},
        {"plan": _problem("n2 has no room"), "put_back": _problem("n1 does not start", "FailedForNowError")},
    )
    assert report["result"] == "refused" and report["message"].startswith("n2 has no room. ")
    assert "Nothing was changed" not in report["message"] and sentence in report["message"]


@pytest.mark.parametrize(
    ("states", "put_back", "said"),
    [
        ({"put_back": "success"}, {"put_back": False, "untouched": True, "checkpoint": None}, ""),
        ({"put_back": "failed"}, None, "found no cluster orders"),
        ({"put_back": "skipped"}, None, ""),
        ({}, None, ""),
    ],
    ids=["no checkpoint", "neither could look", "it did not run", "a DAG without it"],
)
def test_a_refused_rollback_after_which_nothing_was_put_back_has_changed_nothing(
    states: dict[str, str], put_back: dict[str, Any] | None, said: str
) -> None:
    report = _report(
        "rollback",
        {"plan": "failed", **states},
        {"put_back": put_back} if put_back else {},
        {"plan": _problem("found no cluster orders"), **({"put_back": _problem(said)} if said else {})},
    )
    assert report["message"] == "found no cluster orders. Nothing was changed."


def test_what_a_later_task_refuses_is_a_failure_since_something_was_changed() -> None:
    report = _report(
        "rollback", {"plan": "success", "recover": "failed"}, problems={"recover": _problem("promoted elsewhere")}
    )
    assert report["result"] == "failed" and "Nothing was changed" not in report["message"]


@pytest.mark.parametrize("kind", ["FailedForNowError", "UnreachableError", "OutcomeUnknownError"])
def test_a_first_task_that_failed_without_refusing_is_a_failure(kind: str) -> None:
    report = _report("checkpoint", {"check": "failed"}, problems={"check": _problem("no answer", kind)})
    assert report["result"] == "failed"


def test_a_problem_of_a_try_that_was_repeated_with_success_is_not_told() -> None:
    report = _report("checkpoint", {"check": "success"}, problems={"check": _problem("no answer")})
    assert report["result"] == "held" and "no answer" not in report["message"]


def test_a_task_that_died_without_a_sentence_is_named() -> None:
    report = _report("resume", {"check": "success", "release": "failed", "close": "upstream_failed"})
    assert report["message"].startswith("The task release ended without a sentence; its log has the reason.")


@pytest.mark.parametrize(
    ("undo", "result", "sentence"),
    [
        ("success", {"released": True}, "The hold was released again; there is no checkpoint, so do not deploy."),
        ("success", {"released": False}, "Nothing is held; there is no checkpoint, so do not deploy."),
        ("success", {"released": False, "kept": "bg_1"}, "Checkpoint bg_1, which this run took before"),
        ("success", {"released": False, "other": "bg_0"}, "do not deploy; checkpoint bg_0 is another run's."),
        ("failed", None, "A hold may be left"),
        ("skipped", None, "A hold may be left"),
    ],
)
def test_a_failed_checkpoint_says_whether_a_hold_is_left(
    undo: str, result: dict[str, Any] | None, sentence: str
) -> None:
    report = _report(
        "checkpoint",
        {"check": "success", "hold": "failed", "undo": undo},
        {"undo": result} if result else None,
        problems={"hold": _problem("not in effect", "FailedForNowError")},
    )
    assert report["result"] == "failed" and report["message"].startswith("not in effect. ")
    assert sentence in report["message"]
    assert report.get("kept") == (result or {}).get("kept")


def test_a_refused_checkpoint_whose_hold_was_released_does_not_say_that_nothing_was_changed() -> None:
    report = _report(
        "checkpoint",
        {"check": "failed", "hold": "upstream_failed", "undo": "success"},
        {"undo": {"released": True}},
        problems={"check": _problem("too late")},
    )
    assert report["result"] == "refused"
    assert "Nothing was changed" not in report["message"] and "was released again" in report["message"]


def test_a_refused_checkpoint_that_had_released_an_unfinished_hold_says_so() -> None:
    report = _report(
        "checkpoint",
        {"check": "failed", "hold": "upstream_failed", "undo": "success"},
        {"undo": {"released": False}},
        {"check": _problem("n2 lags")},
        changed={"check": "the hold on n2 that bg_0 had left was released first"},
    )
    assert report["message"] == (
        "n2 lags. The hold on n2 that bg_0 had left was released first. No checkpoint was taken, so do not deploy."
    )


@pytest.mark.parametrize("state", ["skipped", "upstream_failed", "removed"])
def test_what_a_task_left_in_an_earlier_pass_of_a_cleared_run_does_not_count(state: str) -> None:
    report = _report(
        "resume",
        {"check": "failed", "release": state},
        {"release": {"checkpoint": {**CHECKPOINT, "revision": 9}, "warnings": ["old"]}},
        {"check": _problem("new"), "release": _problem("old")},
    )
    assert report["checkpoint"] is None and report["warnings"] == []
    assert report["message"].startswith("new.")


def test_a_failed_resume_says_what_to_run() -> None:
    assert "Run bluegreen_resume again" in _report("resume", {"check": "success", "release": "failed"})["message"]


@pytest.mark.parametrize(
    ("phase", "put_back", "sentence"),
    [
        ("stopping", {"put_back": True}, "put back into service"),
        ("stopping", {"put_back": True, "unproven": UNPROVEN}, f"deployment in it; but {UNPROVEN}."),
        (
            "stopping",
            {"put_back": False, "untouched": True, "checkpoint": {"phase": "stopping"}},
            "The old cluster was not touched; the checkpoint is still held. Mend what the sentence names, then run",
        ),
        (
            "stopping",
            {"put_back": False, "untouched": True, "checkpoint": {"phase": "held"}},
            "The old cluster is in service, with the deployment in it; the checkpoint is still held. Mend",
        ),
        ("stopping", {"put_back": False, "untouched": True, "checkpoint": None}, "no checkpoint is held. Mend"),
        ("stopping", {"put_back": False, "locked_out": True}, "does not hold the cluster's lock"),
        ("promoted", {"put_back": False, "checkpoint": {"held": "n2"}}, "n2 is promoted at the mark: there is only"),
        ("promoted", None, "there is only forward"),
        ("taken_over", None, "there is only forward"),
        ("recovering", None, "its log has the reason. Whether n2 is promoted at the mark is not known"),
        ("stopping", None, "Whether n2 is promoted at the mark is not known"),
    ],
)
def test_a_failed_rollback_says_where_it_stopped_and_what_to_do(
    phase: str, put_back: dict[str, Any] | None, sentence: str
) -> None:
    report = _report(
        "rollback",
        {"plan": "success", "recover": "failed", "put_back": "success" if put_back else "failed"},
        {"plan": {"checkpoint": {**CHECKPOINT, "phase": phase}}, **({"put_back": put_back} if put_back else {})},
        {"recover": _problem("the server ended", "FailedForNowError")},
    )
    assert report["result"] == "failed"
    assert report["message"].startswith("the server ended. ") and sentence in report["message"]


@pytest.mark.parametrize(
    ("phase", "recover", "sentence"),
    [
        ("held", "upstream_failed", "Nobody is promoted, and the checkpoint is still held."),
        ("stopping", "upstream_failed", "Nobody is promoted, and the checkpoint is still held."),
        ("stopping", "failed", "Whether n2 is promoted at the mark is not known."),
        ("stopping", None, "Whether n2 is promoted at the mark is not known."),
        ("recovering", "upstream_failed", "Whether n2 is promoted at the mark is not known."),
    ],
)
def test_a_rollback_that_could_not_put_back_says_why_and_whether_anybody_may_be_promoted(
    phase: str, recover: str | None, sentence: str
) -> None:
    report = _report(
        "rollback",
        {"plan": "success", "stop": "failed", **({"recover": recover} if recover else {}), "put_back": "failed"},
        {"plan": {"checkpoint": {**CHECKPOINT, "phase": phase}}},
        {"stop": _problem("n1 still answers"), "put_back": _problem("the start of n3 failed.")},
    )
    assert report["message"].startswith(
        "n1 still answers. Putting the old cluster back into service failed too: the start of n3 failed. " + sentence
    )
    assert "run bluegreen_rollback again with the same params" in report["message"]


# The leaf


HELD_ALL_THE_SAME = {"result": "held", "operation": "checkpoint", "checkpoint": CHECKPOINT, "message": ""}


@pytest.mark.parametrize(
    ("plan", "child", "said"),
    [
        ("success", HELD_ALL_THE_SAME, "Checkpoint bg_1 is held all the same: run bluegreen_resume."),
        ("success", None, "Whether its checkpoint is held is not known"),
        ("success", {"result": "refused", "message": "there is one."}, ""),
        ("failed", None, ""),
    ],
)
def test_a_deployment_that_lost_sight_of_its_checkpoint_says_so(
    plan: str, child: dict[str, Any] | None, said: str
) -> None:
    states = {"plan": plan, "take_checkpoint": "success", "held": "failed"}
    with DAG("bluegreen_test", schedule=None):
        operator = DeployReportOperator(task_id="report", cluster="orders")
        for name in (*states, "resumed", "rolled_back"):
            EmptyOperator(task_id=name) >> operator
    xcoms = {("held", "problem"): _problem("the api-server does not answer", "FailedForNowError")}
    if child:
        xcoms["held", "child_report"] = child
    found = operator.execute({"ti": TaskInstance(states, xcoms), "dag_run": Run()})  # type: ignore[arg-type]
    assert found["message"].startswith("Nothing was deployed.")
    assert ("held" in found["message"]) == bool(said) and said in found["message"], found["message"]


def _outcome(report: Any) -> str:
    operator = OutcomeOperator(task_id="outcome", good=("held",))
    return operator.execute({"ti": TaskInstance({}, {("report", "return_value"): report})})  # type: ignore[typeddict-item]


def test_a_good_result_ends_the_run_well() -> None:
    assert _outcome({"result": "held", "message": "all is well"}) == "held"


@pytest.mark.parametrize("result", ["failed", "refused", "rolled_back", "", "HELD"])
def test_another_result_fails_the_run_with_the_reports_sentence(result: str) -> None:
    with pytest.raises(FailedForNowError, match=f"^{result}: because of this$"):
        _outcome({"result": result, "message": "because of this"})


@pytest.mark.parametrize("report", [None, [], "held", 1])
def test_without_a_report_the_run_fails(report: object) -> None:
    with pytest.raises(FailedForNowError, match="there is no report"):
        _outcome(report)
