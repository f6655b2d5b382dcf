"""The end of every run: one JSON object that says what happened, and a leaf that fails when it must."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from bluegreen.exceptions import BluegreenError, FailedForNowError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.operators.base import BEGUN_KEY, CHANGED_KEY, CHILD_REPORT_KEY, PROBLEM_KEY, RETRY_DELAY, task_states

if TYPE_CHECKING:
    from airflow.sdk import Context

REFUSALS = frozenset({"RefusedError", "RegistryError", "CheckpointLostError", "LockedError"})
_FAILED_STATES = frozenset({"failed", "upstream_failed"})
_NEVER_RAN = frozenset({"upstream_failed", "skipped", "removed"})
_GOOD_STATES = frozenset({"success", "skipped", "removed"})
NOTHING_CHANGED = "Nothing was changed."


class ReportOperator(BaseOperator):
    """Gather what the run's tasks left into one report; it always runs, and is the run's result.

    Example::

        report = ReportOperator(
            task_id="report", operation="resume", success="resumed", first="check", trigger_rule="all_done"
        )

    :param operation: ``checkpoint``, ``deploy``, ``resume`` or ``rollback``.
    :param success: the result when every needed task succeeded.
    :param first: the task that refuses before anything has changed.
    :param needed: the tasks that must have succeeded; by default all upstream ones that are not ``undoing``.
    :param undoing: tasks that run only after a failure, such as ``put_back``.
    :param cluster: the cluster's name in the registry (templated).
    """

    template_fields = ("cluster",)

    def __init__(
        self,
        *,
        operation: str,
        success: str,
        first: str,
        undoing: tuple[str, ...] = (),
        cluster: str = "{{ params.cluster }}",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("trigger_rule", "all_done")
        kwargs.setdefault("retries", 3)
        kwargs.setdefault("retry_delay", RETRY_DELAY)
        super().__init__(**kwargs)
        self.operation = operation
        self.success = success
        self.first = first
        self.undoing = undoing
        self.cluster = cluster

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the report."""
        gathered = Gathered(context, sorted(self.get_flat_relative_ids(upstream=True)))
        failed = gathered.failed(self.undoing)
        report: dict[str, Any] = {
            "cluster": self.cluster,
            "operation": self.operation,
            "result": self._result(gathered, failed),
            "message": "",
            "checkpoint": gathered.last("checkpoint"),
            "members": self._members(gathered),
            "seconds": gathered.seconds(),
            "warnings": gathered.warnings(),
            "requested_by": getattr(context["dag_run"], "triggering_user_name", None) or "",
        }
        for key in (
            "checks",
            "discarded",
            "reason",
            "parts",
            "branch_line",
            "deployment",
            "kept",
            "runbook_path",
            "runbook",
        ):
            value = gathered.last(key)
            if value is not None:
                report[key] = value
        report["message"] = self.message(report, gathered, failed)
        self.log.info("%s: %s", report["result"], report["message"])
        return report

    def _result(self, gathered: Gathered, failed: list[str]) -> str:
        if not failed:
            return self.success
        return "refused" if gathered.refused(self.first) else "failed"

    def message(self, report: Mapping[str, Any], gathered: Gathered, failed: list[str]) -> str:
        """Return one sentence or two: what happened, in which state the cluster is, what to do."""
        if not failed:
            return _success(self.operation, report)
        sentences = [gathered.why(failed)]
        if self.operation == "checkpoint":
            sentences.append(_after_failed_checkpoint(report, gathered, self.first))
        elif self.operation == "rollback":
            sentences.append(_after_failed_rollback(report, gathered, self.first))
        elif report["result"] == "refused":
            sentences.append(NOTHING_CHANGED)
        elif self.operation == "resume":
            sentences.append("The standby may still be held or catching up. Run bluegreen_resume again.")
        return " ".join(sentences)

    def _members(self, gathered: Gathered) -> dict[str, Any]:
        try:
            with ClusterHook(self.cluster) as hook:
                members = hook.member_states(hook.patroni.topology())
        except BluegreenError as error:
            self.log.warning("the members are not known: %s", error)
            members = {}
        for value in gathered.values("rejoined_by"):
            members.setdefault(value["member"], {}).update(_how_it_rejoined(value))
        for value in gathered.values("members"):
            for name, member in value["members"].items():
                if isinstance(member, dict) and "rejoined_by" in member:
                    members.setdefault(name, {}).update(_how_it_rejoined(member))
        return members


class DeployReportOperator(ReportOperator):
    """The deployment's report, with what its children reported.

    Example::

        report = DeployReportOperator(task_id="report", children=("held", "resumed", "rolled_back"))

    :param children: the tasks whose result is a child's report, in order.
    """

    def __init__(
        self, *, children: tuple[str, ...] = ("held", "resumed", "rolled_back"), deploys: str = "deploy", **kwargs: Any
    ) -> None:
        super().__init__(operation="deploy", success="deployed", first="plan", **kwargs)
        self.children = children
        self.deploys = deploys

    def _result(self, gathered: Gathered, failed: list[str]) -> str:
        held, resumed, rolled_back = self.children
        if gathered.states.get(rolled_back) == "success":
            return "rolled_back"
        if gathered.states.get(resumed) == "success":
            return "failed" if gathered.not_begun(self.deploys) else "deployed"
        if gathered.refused(self.first):
            return "refused"
        child = gathered.child_report(held)
        return "refused" if child.get("result") == "refused" else "failed"

    def message(self, report: Mapping[str, Any], gathered: Gathered, failed: list[str]) -> str:
        """Return why, and what the child that ended it said."""
        held, resumed, rolled_back = self.children
        if report["result"] == "deployed":
            return f"The deployment succeeded. {gathered.child_report(resumed).get('message', '')}"
        ends = ("resume", "roll_back", resumed, rolled_back)
        early = [name for name in failed if name not in ends]
        why = gathered.why(early) if early else "A person, or the time-out for an answer, decided so."
        if report["result"] == "rolled_back":
            return f"The deployment was rolled back. {why} {gathered.child_report(rolled_back).get('message', '')}"
        if gathered.states.get(held) != "success":
            return f"Nothing was deployed. {why} {_left_held(gathered, self.first, held)}".strip()
        last = [name for name in failed if name in ends]
        if gathered.not_begun(self.deploys):
            then = gathered.why(last) if last else gathered.child_report(resumed).get("message", "")
            return f"Nothing was deployed. {why} {then}".strip()
        ending = gathered.why(last) if last else "Neither resume nor rollback has ended."
        return f"The deployment ran, and what follows it did not end well. {why if early else ''} {ending}".strip()


def _left_held(gathered: Gathered, first: str, held: str) -> str:
    """Return what is to say of a checkpoint whose run this one has not waited for to its end."""
    child = gathered.child_report(held)
    if child.get("result") == "held":
        return f"Checkpoint {child['checkpoint']['id']} is held all the same: run bluegreen_resume."
    if child or not gathered.succeeded(first):
        return ""
    return (
        "Whether its checkpoint is held is not known: look at the run of bluegreen_checkpoint whose id begins with "
        "this run's, and where it ended as held, run bluegreen_resume."
    )


class OutcomeOperator(BaseOperator):
    """The run's leaf: it fails unless the report's result is one of those that are good.

    Example::

        outcome = OutcomeOperator(task_id="outcome", good=("held",), report="report")

    :param good: the results with which the run succeeds.
    :param report: the task whose report is read.
    :raises FailedForNowError: otherwise, with the report's message.
    """

    def __init__(self, *, good: tuple[str, ...], report: str = "report", **kwargs: Any) -> None:
        kwargs.setdefault("trigger_rule", "all_done")
        kwargs.setdefault("retries", 0)
        super().__init__(**kwargs)
        self.good = good
        self.report = report

    def execute(self, context: Context) -> str:
        """Return the result, or fail with the report's sentence."""
        report = context["ti"].xcom_pull(task_ids=self.report)
        if not isinstance(report, dict):
            raise FailedForNowError("there is no report; look at the log of the task `report`")
        if report["result"] not in self.good:
            raise FailedForNowError(f"{report['result']}: {report['message']}")
        return str(report["result"])


class Gathered:
    """What the upstream tasks of a run left: states, results and problems.

    :param task_ids: the tasks, in any order.
    """

    def __init__(self, context: Context, task_ids: list[str]) -> None:
        ti = context["ti"]
        self.states = task_states(context)
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.problems: dict[str, list[dict[str, str]]] = {}
        self.changed: dict[str, list[str]] = {}
        self.child_reports: dict[str, list[dict[str, Any]]] = {}
        self.unbegun: set[str] = set()
        self.task_ids = task_ids
        for name in task_ids:
            if not self.began(name):
                # What it left in an earlier pass of a cleared run is still there.
                continue
            self.results[name] = [value for value in _all(ti, name, "return_value") if isinstance(value, dict)]
            if self._any_state(name, _FAILED_STATES):
                self.problems[name] = _all(ti, name, PROBLEM_KEY)
                self.changed[name] = _all(ti, name, CHANGED_KEY)
                self.unbegun |= {name} if _all(ti, name, BEGUN_KEY) == [False] else set()
                self.child_reports[name] = _all(ti, name, CHILD_REPORT_KEY)

    def _states_of(self, name: str) -> list[str]:
        # Airflow calls the instances of a mapped task by its name, "_" and a number.
        keys = ((key, *key.rpartition("_")[::2]) for key in self.states)
        return [self.states[key] for key, task, index in keys if key == name or (task == name and index.isdecimal())]

    def _any_state(self, name: str, wanted: frozenset[str]) -> bool:
        return any(state in wanted for state in self._states_of(name))

    def began(self, name: str) -> bool:
        """Tell whether a task of this name may have run; one of which nothing is known may have."""
        return not (set(self._states_of(name)) or {""}) <= _NEVER_RAN

    def may_have_run(self, name: str) -> bool:
        """Tell whether there is such a task, and it may have run."""
        return name in self.task_ids and self.began(name)

    def not_begun(self, name: str) -> bool:
        """Tell whether a deployment is known to have failed before it began."""
        return name in self.unbegun

    def succeeded(self, name: str) -> bool:
        """Tell whether a task is known to have succeeded."""
        return set(self._states_of(name)) == {"success"}

    def child_report(self, name: str) -> dict[str, Any]:
        """Return the report of the child that a task waited for, also of one that failed."""
        found = [*self.results.get(name, []), *self.child_reports.get(name, [])]
        return found[-1] if found else {}

    def failed(self, undoing: tuple[str, ...]) -> list[str]:
        """Return the tasks that did not end well: failed, never ran, or of which nothing is known."""
        return [
            name
            for name in self.task_ids
            if name not in undoing and not (set(self._states_of(name)) or {""}) <= _GOOD_STATES
        ]

    def refused(self, name: str) -> bool:
        """Tell whether a task ended with a refusal."""
        return any(problem["kind"] in REFUSALS for problem in self.problems.get(name, []))

    def sentence(self, name: str) -> str:
        """Return what a task that failed said, or an empty text; of a mapped one, what each instance said, once."""
        said = [f"{problem['message'].rstrip('.')}." for problem in self.problems.get(name, [])]
        return " ".join(dict.fromkeys(said))

    def why(self, failed: list[str]) -> str:
        """Return the first failure's sentence."""
        if said := next(filter(None, map(self.sentence, failed)), ""):
            return said
        died = [name for name in failed if self._any_state(name, frozenset({"failed"}))]
        return f"The task {', '.join(died) or failed[0]} ended without a sentence; its log has the reason."

    def values(self, key: str) -> list[dict[str, Any]]:
        """Return every result that has a key."""
        return [result for results in self.results.values() for result in results if key in result]

    def last(self, key: str) -> Any:
        """Return a key's value from the task that ran last; for checkpoints, the highest revision."""
        found = [result[key] for result in self.values(key) if result[key] is not None]
        if key == "checkpoint":
            return max(found, key=lambda record: record.get("revision", 0), default=None)
        return found[-1] if found else None

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each task; of a mapped one, its longest."""
        seconds: dict[str, float] = {}
        for name, results in self.results.items():
            for result in results:
                taken = result.get("seconds")
                if isinstance(taken, dict):
                    # A child's report: its phases, by the child's name.
                    seconds |= {f"{result['operation']}.{phase}": value for phase, value in taken.items()}
                elif taken is not None:
                    seconds[name] = max(seconds.get(name, 0.0), taken)
        return seconds

    def warnings(self) -> list[str]:
        """Return all warnings, each once."""
        found = [line for result in self.values("warnings") for line in result["warnings"]]
        return list(dict.fromkeys(found))


def _how_it_rejoined(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("rejoined_by", "rejoined_because") if key in result}


def _all(ti: Any, task_id: str, key: str) -> list[Any]:
    """Return a key's values of a task, mapped or not."""
    found = ti.xcom_pull(task_ids=task_id, key=key)
    values = found if isinstance(found, list | tuple) else [found]
    return [value for value in values if value is not None]


def _success(operation: str, report: Mapping[str, Any]) -> str:
    record = report.get("checkpoint") or {}
    what = f"checkpoint {record.get('id')}"
    if operation == "checkpoint":
        return (
            f"{record.get('held')} is held before transaction {record.get('xid')} ({record.get('lsn')}, timeline "
            f"{record.get('timeline')}): {what}, until {record.get('expires_at')}."
        )
    if operation == "resume":
        return f"{record.get('held')} goes on and has caught up; {what} is closed."
    return (
        f"{record.get('held')} is the leader, with the state before transaction {record.get('xid')}; proven by "
        f"{report.get('branch_line')!r}. Now take a backup, look at the WAL archive, and tell the consumers of "
        "logical slots."
    )


def _after_failed_checkpoint(report: Mapping[str, Any], gathered: Gathered, first: str) -> str:
    undone = next(iter(gathered.results.get("undo", [])), None)
    if undone and undone["released"]:
        return "The hold was released again; there is no checkpoint, so do not deploy."
    if undone and undone.get("kept"):
        return f"Checkpoint {undone['kept']}, which this run took before it was cleared, is still held."
    if report["result"] == "refused":
        changed = [f"{text[:1].upper()}{text[1:]}." for text in gathered.changed.get(first, [])]
        return " ".join([*changed, "No checkpoint was taken, so do not deploy."]) if changed else NOTHING_CHANGED
    if undone and undone.get("other"):
        return f"This run took no checkpoint, so do not deploy; checkpoint {undone['other']} is another run's."
    if undone:
        return "Nothing is held; there is no checkpoint, so do not deploy."
    return (
        "There is no proven checkpoint, so do not deploy. A hold may be left: the next checkpoint releases it first, "
        "and so does bluegreen_resume."
    )


def _after_failed_rollback(report: Mapping[str, Any], gathered: Gathered, first: str) -> str:
    """Say in which state the cluster is, which what `put_back` did decides: also after a refusal.

    A former run may have stopped everybody; then the refused one puts the old cluster back under its own lock.
    """
    refused = report["result"] == "refused"
    again = "Mend what the sentence names, then run bluegreen_rollback again"
    done = next((result for result in gathered.results.get("put_back", []) if "put_back" in result), None)
    if done is None:
        return _not_put_back(gathered, first, refused=refused)
    if done["put_back"]:
        served = "The old cluster was put back into service, with the deployment in it;"
        if done.get("lost"):
            then = "" if "bluegreen_resume" in done["lost"] else " Run bluegreen_resume to let the standby go on."
            return f"{served} but {done['lost'].rstrip('.')}.{then}"
        if done.get("unproven"):
            return f"{served} but {done['unproven'].rstrip('.')}."
        return f"{served} the checkpoint is still held, and was proven again. {again}."
    record = done.get("checkpoint") or {}
    if done.get("untouched"):
        if refused:
            return NOTHING_CHANGED
        if not record:
            return f"Nothing was touched, and no checkpoint is held. {again} with one that is."
        if record.get("phase") == "held" and gathered.succeeded(first):
            # Its first task said in the journal that a rollback begins: somebody has put the old cluster back since.
            return f"The old cluster is in service, with the deployment in it; the checkpoint is still held. {again}."
        return f"The old cluster was not touched; the checkpoint is still held. {again}."
    if done.get("locked_out"):
        return (
            "This run does not hold the cluster's lock, so it put nothing back. Look at the run that holds it; when "
            "none works on the cluster, run bluegreen_rollback again."
        )
    return _only_forward(record)


def _only_forward(record: Mapping[str, Any]) -> str:
    return (
        f"{record.get('held')} is promoted at the mark: there is only forward, and nothing was deleted. Mend what "
        "the sentence names, then run bluegreen_rollback again with the same params; it goes on where this one "
        "stopped."
    )


def _not_put_back(gathered: Gathered, first: str, *, refused: bool) -> str:
    record = gathered.last("checkpoint") or {}
    if record.get("phase") in {"promoted", "taken_over"}:
        return _only_forward(record)
    said = gathered.sentence("put_back")
    if refused and (not gathered.may_have_run("put_back") or said == gathered.sentence(first)):
        # Nor could it look at what the refused task could not look at.
        return NOTHING_CHANGED
    why = f" failed too: {said}" if said else " did not succeed; its log has the reason."
    # Recovery is written into every journal before it begins.
    promoted = "Nobody is promoted, and the checkpoint is still held."
    if record.get("phase") not in {"held", "stopping"} or gathered.began("recover"):
        promoted = f"Whether {record.get('held') or 'the held member'} is promoted at the mark is not known."
    return (
        f"Putting the old cluster back into service{why} {promoted} The cluster may serve nobody: mend what these "
        "sentences name, then run bluegreen_rollback again with the same params; it looks first, and goes on where "
        "this one stopped."
    )
