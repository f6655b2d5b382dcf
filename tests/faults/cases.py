"""The matrix: each step of checkpoint, resume and rollback x the moment x what breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.faults import damage
from tests.faults.breakpoints import Point
from tests.faults.damage import Mend, Place

# what a step has just done, or is about to do, when it is broken "during"
DURING: dict[str, dict[str, tuple[str, str, str]]] = {
    "checkpoint": {
        "check": ("node", "end", r"echo taken"),
        "hold": ("rest", "begin", r"POST .*/reload"),
        "mark": ("sql", "end", r"^mark$"),
        "record": ("rest", "begin", r"POST .*/reload"),
        "undo": ("rest", "begin", r"POST .*/reload"),
    },
    "resume": {
        "check": ("node", "end", r"echo taken"),
        "release": ("rest", "begin", r"POST .*/reload"),
        "rejoin": ("rest", "begin", r"POST .*/reinitialize"),
        "close": ("node", "end", r"rm -rf"),
    },
    "rollback": {
        "plan": ("node", "end", r"echo taken"),
        "stop": ("node", "end", r"ctl stop"),
        "recover": ("node", "begin", r"pg_ctl\" start"),
        "put_back": ("node", "begin", r"ctl start"),
        "remove_cluster": ("node", "end", r"Yes I am aware"),
        "start_leader": ("node", "begin", r"ctl start"),
        "rejoin": ("node", "end", r"pg_rewind"),
        "close": ("node", "end", r"rm -rf"),
    },
}
MANAGER_SECONDS = 8
"""How long it takes until a service manager has started a killed Patroni again."""
STEPS = {operation: [*steps, "unlock"] for operation, steps in DURING.items()}


@dataclass(frozen=True)
class Break:
    """What is broken earlier than a case's own fault, so that the operation comes to that point at all.

    :param member: as in `Case`.
    """

    task: str
    moment: str
    fault: Callable[[Place], Mend]
    member: str


@dataclass(frozen=True)
class Case:
    """One fault at one point of one operation.

    :param member: `held`, `leader` or `third`, as they are before the operation.
    :param fault: breaks something; its name is the case's, unless the case is called otherwise.
    :param prepare: done before the operation begins.
    :param conf: more of the operation's params.
    :param lost: the fault makes the checkpoint worthless: the operation must refuse for good, and say so.
    :param comes_back: what is lost may come back when the old cluster serves again: the leader sends its WAL.
    :param mend_after: seconds after which it is mended while the operation still runs; None for after its end.
    :param first: what leads there; it is mended after the operation's end.
    """

    operation: str
    task: str
    moment: str
    fault: Callable[[Place], Mend]
    member: str = "held"
    called: str = ""
    prepare: tuple[Callable[[Place], Mend], ...] = ()
    conf: dict[str, Any] = field(default_factory=dict)
    lost: bool = False
    comes_back: bool = False
    mend_after: float | None = None
    first: Break | None = None

    @property
    def name(self) -> str:
        """What breaks."""
        return self.called or self.fault.__name__

    @property
    def id(self) -> str:
        """How it is listed."""
        where = f"_on_{self.member}" if self.name not in WHOLE else ""
        return f"{self.operation}-{self.task}-{self.moment}-{self.name}{where}"

    @property
    def fails_over(self) -> bool:
        """Whether the new leader may lose its office after the promotion: then there is one more timeline."""
        # a server that does not answer is demoted by its Patroni, and promoted once more when it does
        out = self.fault in (damage.patroni_killed, damage.postgres_killed, damage.postgres_stopped)
        promoted = {("recover", "after"), ("rejoin", "before"), ("close", "before")}
        at = self.operation == "rollback" and (self.task, self.moment) in promoted
        # a leader that does not reach the DCS resigns, and is promoted once more when it does
        cut_off = self.fault is damage.etcd_stopped and (self.operation, self.task) == ("rollback", "rejoin")
        return cut_off or (out and at and self.member == "held")

    @property
    def person(self) -> bool:
        """Whether the state after the run may need a person.

        Only where the checkpoint itself is lost, or where the fault comes when the operation has changed something and
        lasts until its end, so that it takes away what both undoing and going on need. Whoever else is left half-way is
        a mistake of the product.
        """
        if self.lost:
            return True
        half_way = _reached(self, *HALF_WAY[self.operation])
        undoes = self.task == "put_back"
        promoted = self.operation == "rollback" and _reached(self, "recover", "after") and not undoes
        if self.mend_after is not None or not (half_way or self.fault is damage.etcd_stopped):
            return False
        if self.fault is damage.etcd_stopped:
            # before anything was changed it refuses; once it has begun, a rollback needs the DCS after its promotion
            return half_way or (self.operation, self.task) == ("rollback", "stop")
        if self.fault in TAKES_AWAY:
            # only the held member is changed by a checkpoint
            return self.operation != "checkpoint" or self.member == "held"
        if undoes:
            return self.fault.__name__ == "ctl_fails"
        # going on needs these, and nothing is undone; Airflow may use up a task's tries while it comes back
        return promoted and (
            self.fault is damage.airflow_killed
            or self.fault.__name__ in ("patronictl_fails", "patronictl_hangs", "ctl_fails")
            or (self.fault.__name__ == "pg_rewind_fails" and self.conf.get("rejoin") == "rewind")
        )

    @property
    def breaks(self) -> list[Break]:
        """Everything that is broken, in its order."""
        own = Break(self.task, self.moment, self.fault, self.member)
        return [self.first, own] if self.first else [own]

    def point(self, broken: Break) -> Point:
        """Where the task stops for it."""
        dag = f"bluegreen_{self.operation}"
        if broken.moment == "during":
            kind, edge, match = DURING[self.operation][broken.task]
            return Point(dag, broken.task, kind, edge, match)
        return Point(dag, broken.task, "task", "begin" if broken.moment == "before" else "end", "")


# from here on an operation has changed something: the hold is written or taken out, everybody is stopped
HALF_WAY = {"checkpoint": ("hold", "during"), "resume": ("release", "during"), "rollback": ("recover", "before")}
MOMENTS = ("before", "during", "after")
# a member cannot be reached, or a person has put something where the product must not choose
TAKES_AWAY = frozenset(
    {
        damage.ssh_refused,
        damage.ssh_hangs,
        damage.host_key_changed,
        damage.host_gone,
        damage.patroni_killed,
        damage.postgres_stopped,
        damage.person_restores_yaml,
    }
)


def _reached(case: Case, step: str, moment: str) -> bool:
    """Whether a case's point is this one or a later one."""
    steps = STEPS[case.operation]
    here = (steps.index(case.task), MOMENTS.index(case.moment))
    return here >= (steps.index(step), MOMENTS.index(moment))


WHOLE = frozenset(
    {
        "task_killed",
        "airflow_killed",
        "etcd_stopped",
        "patronictl_fails",
        "patronictl_hangs",
        "stranger_joins",
        "second_rollback",
    }
)
SPREAD = {
    "checkpoint-hold-during-task_killed",
    "resume-release-during-task_killed",
    "rollback-recover-during-task_killed",
    "rollback-plan-before-patroni_killed_on_leader",
    "rollback-stop-before-ssh_refused_on_leader",
    "rollback-rejoin-during-ssh_cut_on_third",
}


# the steps that a good run skips, and how a run comes to them
NO_MARK = Break("mark", "before", damage.right_taken_away, "leader")
NO_RECOVERY = Break("recover", "before", damage.program("pg_waldump", "fails"), "held")
LEADS_TO: dict[tuple[str, str], dict[str, Any]] = {
    ("checkpoint", "undo"): {"first": NO_MARK},
    ("resume", "rejoin"): {"prepare": (damage.slot_lost,)},
    ("rollback", "put_back"): {"first": NO_RECOVERY},
}


def _case(operation: str, task: str, moment: str, fault: Callable[[Place], Mend], member: str = "held") -> Case:
    """A case with what leads to its step."""
    return Case(operation, task, moment, fault, member, **LEADS_TO.get((operation, task), {}))


def _killed() -> Iterator[Case]:
    for operation, steps in STEPS.items():
        for step in steps:
            for moment in MOMENTS:
                if moment != "during" or step in DURING[operation]:
                    yield _case(operation, step, moment, damage.task_killed)


def _cases() -> Iterator[Case]:
    """The rest."""
    checkpoint, resume, rollback = "checkpoint", "resume", "rollback"
    places: dict[Callable[[Place], Mend], list[tuple[str, str, str, str]]] = {
        damage.ssh_refused: [
            (checkpoint, "hold", "before", "held"),
            (checkpoint, "mark", "before", "held"),
            (checkpoint, "record", "before", "held"),
            (resume, "release", "before", "held"),
            (rollback, "stop", "before", "held"),
            (rollback, "stop", "before", "leader"),
            (rollback, "recover", "before", "held"),
            (rollback, "remove_cluster", "before", "held"),
            (rollback, "start_leader", "before", "held"),
            (rollback, "rejoin", "before", "third"),
        ],
        damage.ssh_cut: [
            (checkpoint, "hold", "during", "held"),
            (rollback, "stop", "during", "leader"),
            (rollback, "recover", "during", "held"),
            (rollback, "rejoin", "during", "third"),
        ],
        damage.ssh_cut_in("ctl", only="stop"): [(rollback, "stop", "before", "leader")],
        damage.ssh_cut_in("pg_ctl", only="start"): [(rollback, "recover", "before", "held")],
        damage.ssh_cut_in("pg_rewind"): [(rollback, "rejoin", "before", "third")],
        damage.ssh_hangs: [
            (checkpoint, "hold", "before", "held"),
            (resume, "close", "before", "third"),
            (rollback, "recover", "before", "held"),
        ],
        damage.host_key_changed: [
            (checkpoint, "record", "before", "held"),
            (rollback, "stop", "before", "leader"),
            (rollback, "start_leader", "before", "held"),
        ],
        # Patroni calls pg_ctl too, to promote and to reload
        damage.program("pg_ctl", "fails", only="start"): [(rollback, "recover", "before", "held")],
        damage.program("pg_ctl", "hangs", only="start"): [(rollback, "recover", "before", "held")],
        damage.program("pg_waldump", "fails"): [(rollback, "recover", "before", "held")],
        damage.program("pg_rewind", "fails"): [(rollback, "rejoin", "before", "third")],
        damage.program("patronictl", "fails"): [(rollback, "remove_cluster", "before", "held")],
        damage.program("patronictl", "hangs"): [(rollback, "remove_cluster", "before", "held")],
        damage.program("ctl", "fails"): [
            (rollback, "stop", "before", "leader"),
            (rollback, "start_leader", "before", "held"),
        ],
        damage.patroni_killed: [
            (checkpoint, "hold", "before", "leader"),
            (checkpoint, "hold", "during", "held"),
            (checkpoint, "mark", "before", "leader"),
            (checkpoint, "record", "before", "third"),
            (resume, "release", "before", "leader"),
            (resume, "release", "during", "held"),
            (rollback, "plan", "before", "leader"),
            (rollback, "stop", "before", "held"),
            (rollback, "close", "before", "held"),
        ],
        damage.postgres_killed: [
            (checkpoint, "mark", "before", "leader"),
            (checkpoint, "mark", "during", "held"),
            (resume, "release", "before", "held"),
            (rollback, "plan", "after", "held"),
            (rollback, "stop", "before", "leader"),
            (rollback, "recover", "after", "held"),
            (rollback, "rejoin", "before", "held"),
        ],
        damage.postgres_stopped: [
            (checkpoint, "mark", "during", "held"),
            (checkpoint, "mark", "before", "third"),
        ],
        damage.member_dead: [
            (checkpoint, "mark", "before", "leader"),
            (rollback, "plan", "before", "leader"),
        ],
        damage.host_gone: [
            (rollback, "plan", "before", "leader"),
            (rollback, "stop", "before", "leader"),
            (rollback, "rejoin", "before", "leader"),
        ],
        damage.etcd_stopped: [
            (checkpoint, "hold", "before", "held"),
            (checkpoint, "mark", "during", "held"),
            (checkpoint, "record", "before", "held"),
            (resume, "release", "before", "held"),
            (resume, "close", "before", "held"),
            (rollback, "plan", "before", "held"),
            (rollback, "recover", "before", "held"),
            (rollback, "remove_cluster", "before", "held"),
            (rollback, "remove_cluster", "during", "held"),
            (rollback, "start_leader", "before", "held"),
            (rollback, "rejoin", "before", "held"),
        ],
        damage.auto_conf_strange: [(rollback, "recover", "before", "held")],
        damage.person_starts_patroni: [
            (rollback, "recover", "before", "leader"),
            (rollback, "remove_cluster", "before", "leader"),
            (rollback, "start_leader", "before", "third"),
            (rollback, "start_leader", "before", "leader"),
        ],
        damage.person_restores_yaml: [
            (rollback, "recover", "before", "leader"),
            (rollback, "remove_cluster", "before", "third"),
            (rollback, "start_leader", "before", "leader"),
        ],
        damage.stranger_joins: [(rollback, "plan", "before", "held"), (rollback, "stop", "before", "held")],
        damage.second_rollback: [(rollback, "recover", "before", "held")],
        damage.airflow_killed: [
            (checkpoint, "hold", "during", "held"),
            (rollback, "recover", "during", "held"),
            (rollback, "rejoin", "during", "held"),
        ],
    }
    for fault, where in places.items():
        for operation, step, moment, member in where:
            # Where nobody starts it within Patroni's ttl another one leads, and without a watchdog both take writes.
            manager = fault is damage.patroni_killed and member == "leader"
            yield Case(operation, step, moment, fault, member, mend_after=MANAGER_SECONDS if manager else None)

    for moment, fault, member in (
        ("before", damage.ssh_refused, "held"),
        ("before", damage.postgres_killed, "held"),
        ("during", damage.patroni_killed, "held"),
        ("during", damage.airflow_killed, "held"),
    ):
        yield _case(checkpoint, "undo", moment, fault, member)
    yield _case(resume, "rejoin", "before", damage.ssh_refused, "held")
    yield _case(resume, "rejoin", "during", damage.airflow_killed)
    for moment, fault, member in (
        ("before", damage.ssh_refused, "leader"),
        ("before", damage.program("ctl", "fails"), "leader"),
        ("before", damage.etcd_stopped, "held"),
        ("before", damage.person_restores_yaml, "leader"),
        ("during", damage.ssh_cut, "third"),
        ("during", damage.airflow_killed, "held"),
        ("after", damage.postgres_killed, "leader"),
    ):
        yield _case(rollback, "put_back", moment, fault, member)
    yield Case(rollback, "recover", "after", damage.postgres_stopped)
    yield Case(rollback, "rejoin", "before", damage.postgres_stopped)
    yield Case(rollback, "plan", "before", damage.wal_missing, lost=True)
    yield Case(rollback, "plan", "before", damage.mark_not_in_wal, lost=True)
    yield Case(rollback, "recover", "before", damage.wal_missing, lost=True, comes_back=True)
    for operation, step in ((rollback, "recover"), (rollback, "plan"), (checkpoint, "record")):
        yield Case(operation, step, "before", damage.disk_full, prepare=(damage.small_disk,))
    yield Case(rollback, "recover", "before", damage.hba_of_root)
    for hours, called in ((-1, "clock_an_hour_behind"), (1, "clock_an_hour_ahead")):
        yield Case(checkpoint, "hold", "before", damage.no_more, called=called, prepare=(damage.clock(hours),))
    yield Case(rollback, "stop", "before", damage.postgres_stopped, "leader", mend_after=40)
    fails = damage.program("pg_rewind", "fails")
    called = "pg_rewind_fails_where_asked_for"
    yield Case(rollback, "rejoin", "before", fails, "third", called=called, conf={"rejoin": "rewind"})
    hangs = damage.program("pg_rewind", "hangs")
    yield Case(rollback, "rejoin", "before", hangs, "third", prepare=(damage.short_rewind,))
    fails = damage.program("pg_basebackup", "fails")
    yield Case(rollback, "rejoin", "before", fails, "third", conf={"rejoin": "reclone"}, mend_after=20)


CASES = [*_killed(), *_cases()]
assert len({case.id for case in CASES}) == len(CASES), "two cases have one name"
assert set(SPREAD) <= {case.id for case in CASES}, set(SPREAD) - {case.id for case in CASES}
