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
    },
    "resume": {
        "check": ("node", "end", r"echo taken"),
        "release": ("rest", "begin", r"POST .*/reload"),
        "close": ("node", "end", r"rm -rf"),
    },
    "rollback": {
        "plan": ("node", "end", r"echo taken"),
        "stop": ("node", "end", r"ctl stop"),
        "recover": ("node", "begin", r"pg_ctl\" start"),
        "remove_cluster": ("node", "end", r"Yes I am aware"),
        "start_leader": ("node", "begin", r"ctl start"),
        "rejoin": ("node", "end", r"pg_rewind"),
        "close": ("node", "end", r"rm -rf"),
    },
}
STEPS = {operation: [*steps, "unlock"] for operation, steps in DURING.items()}


@dataclass(frozen=True)
class Case:
    """One fault at one point of one operation.

    :param member: `held`, `leader` or `third`, as they are before the operation.
    :param fault: breaks something.
    :param prepare: done before the operation begins.
    :param conf: more of the operation's params.
    :param lost: the fault makes the checkpoint worthless: the operation must refuse for good, and say so.
    :param mend_after: seconds after which it is mended while the operation still runs; None for after its end.
    """

    operation: str
    task: str
    moment: str
    name: str
    fault: Callable[[Place], Mend]
    member: str = "held"
    prepare: tuple[Callable[[Place], Mend], ...] = ()
    conf: dict[str, Any] = field(default_factory=dict)
    lost: bool = False
    mend_after: float | None = None

    @property
    def id(self) -> str:
        """How it is listed."""
        where = f"_on_{self.member}" if self.name not in WHOLE else ""
        return f"{self.operation}-{self.task}-{self.moment}-{self.name}{where}"

    def point(self, member: str) -> Point:
        """Where the task stops for the fault."""
        dag = f"bluegreen_{self.operation}"
        if self.moment == "during":
            kind, edge, match = DURING[self.operation][self.task]
            return Point(dag, self.task, kind, edge, match)
        return Point(dag, self.task, "task", "begin" if self.moment == "before" else "end", "")


WHOLE = frozenset(
    {"task_killed", "airflow_killed", "etcd_stopped", "patronictl_fails", "patronictl_hangs", "second_rollback"}
)
SPREAD = {
    "checkpoint-hold-during-task_killed",
    "resume-release-during-task_killed",
    "rollback-recover-during-task_killed",
    "rollback-plan-before-patroni_killed_on_leader",
    "rollback-stop-before-ssh_refused_on_leader",
    "rollback-rejoin-during-ssh_cut_on_third",
}


def _killed() -> Iterator[Case]:
    for operation, steps in STEPS.items():
        for step in steps:
            for moment in ("before", "during", "after"):
                if moment != "during" or step in DURING[operation]:
                    yield Case(operation, step, moment, "task_killed", damage.kill_task)


def _cases() -> Iterator[Case]:
    """The rest: (operation, step, moment, what, on whom)."""
    checkpoint, resume, rollback = "checkpoint", "resume", "rollback"
    fails, hangs = "echo broken >&2; exit 1", "sleep 600"

    # SSH
    for step in ("hold", "mark", "record"):
        yield Case(checkpoint, step, "before", "ssh_refused", damage.ssh_refused, "held")
    yield Case(checkpoint, "hold", "during", "ssh_cut", damage.ssh_cut, "held")
    yield Case(checkpoint, "hold", "before", "ssh_hangs", damage.ssh_hangs, "held")
    yield Case(checkpoint, "record", "before", "host_key_changed", damage.host_key_changed, "held")
    yield Case(resume, "release", "before", "ssh_refused", damage.ssh_refused, "held")
    yield Case(resume, "close", "before", "ssh_hangs", damage.ssh_hangs, "third")
    for step in ("stop", "recover", "remove_cluster", "start_leader"):
        yield Case(rollback, step, "before", "ssh_refused", damage.ssh_refused, "held")
    yield Case(rollback, "stop", "before", "ssh_refused", damage.ssh_refused, "leader")
    yield Case(rollback, "rejoin", "before", "ssh_refused", damage.ssh_refused, "third")
    yield Case(rollback, "stop", "during", "ssh_cut", damage.ssh_cut, "leader")
    yield Case(rollback, "recover", "during", "ssh_cut", damage.ssh_cut, "held")
    yield Case(rollback, "rejoin", "during", "ssh_cut", damage.ssh_cut, "third")
    yield Case(rollback, "recover", "before", "ssh_hangs", damage.ssh_hangs, "held")
    yield Case(rollback, "stop", "before", "host_key_changed", damage.host_key_changed, "leader")
    yield Case(rollback, "start_leader", "before", "host_key_changed", damage.host_key_changed, "held")

    # programs
    # Patroni calls pg_ctl too, to promote and to reload, and pg_controldata
    starts = 'case " $* " in *" start "*) '
    yield Case(rollback, "recover", "before", "pg_ctl_fails", damage.program("pg_ctl", f"{starts}{fails};; esac"))
    yield Case(rollback, "recover", "before", "pg_ctl_hangs", damage.program("pg_ctl", f"{starts}{hangs};; esac"))
    yield Case(rollback, "recover", "before", "pg_waldump_fails", damage.program("pg_waldump", fails), "held")
    yield Case(rollback, "rejoin", "before", "pg_rewind_fails", damage.program("pg_rewind", fails), "third")
    yield Case(
        rollback,
        "rejoin",
        "before",
        "pg_rewind_fails_where_asked_for",
        damage.program("pg_rewind", fails),
        "third",
        conf={"rejoin": "rewind"},
    )
    yield Case(rollback, "rejoin", "before", "pg_basebackup_fails", damage.program("pg_basebackup", fails), "third",
               conf={"rejoin": "reclone"}, mend_after=20)  # fmt: skip
    yield Case(rollback, "remove_cluster", "before", "patronictl_fails", damage.program("patronictl", fails))
    yield Case(rollback, "remove_cluster", "before", "patronictl_hangs", damage.program("patronictl", hangs))
    yield Case(rollback, "stop", "before", "ctl_fails", damage.program("ctl", fails), "leader")
    yield Case(rollback, "start_leader", "before", "ctl_fails", damage.program("ctl", fails), "held")

    # servers
    for operation, step, moment, member in (
        (checkpoint, "hold", "before", "leader"),
        (checkpoint, "hold", "during", "held"),
        (checkpoint, "mark", "before", "leader"),
        (checkpoint, "record", "before", "third"),
        (resume, "release", "before", "leader"),
        (resume, "release", "during", "held"),
        (rollback, "plan", "before", "leader"),
        (rollback, "stop", "before", "held"),
        (rollback, "close", "before", "held"),
    ):
        yield Case(operation, step, moment, "patroni_killed", damage.patroni_killed, member)
    for operation, step, moment, member in (
        (checkpoint, "mark", "before", "leader"),
        (checkpoint, "mark", "during", "held"),
        (resume, "release", "before", "held"),
        (rollback, "plan", "after", "held"),
        (rollback, "stop", "before", "leader"),
        (rollback, "rejoin", "before", "held"),
    ):
        yield Case(operation, step, moment, "postgres_killed", damage.postgres_killed, member)
    yield Case(checkpoint, "mark", "during", "postgres_stopped", damage.postgres_stopped, "held")
    yield Case(checkpoint, "mark", "before", "postgres_stopped", damage.postgres_stopped, "third")
    yield Case(rollback, "stop", "before", "postgres_stopped", damage.postgres_stopped, "leader", mend_after=40)
    yield Case(checkpoint, "mark", "before", "member_dead", damage.member_dead, "leader")
    yield Case(rollback, "plan", "before", "member_dead", damage.member_dead, "leader")
    yield Case(rollback, "recover", "before", "member_dead", damage.nothing_runs, "held")
    yield Case(rollback, "plan", "before", "host_gone", damage.host_gone, "leader")
    yield Case(rollback, "stop", "before", "host_gone", damage.host_gone, "leader")
    yield Case(rollback, "rejoin", "before", "host_gone", damage.host_gone, "leader")
    for hours in (-1, 1):
        name = "clock_an_hour_behind" if hours < 0 else "clock_an_hour_ahead"
        yield Case(checkpoint, "hold", "before", name, damage.no_more, "held", prepare=(damage.clock(hours),))

    # the DCS
    for operation, step, moment in (
        (checkpoint, "hold", "before"),
        (checkpoint, "mark", "during"),
        (checkpoint, "record", "before"),
        (resume, "release", "before"),
        (resume, "close", "before"),
        (rollback, "plan", "before"),
        (rollback, "recover", "before"),
        (rollback, "remove_cluster", "before"),
        (rollback, "remove_cluster", "during"),
        (rollback, "start_leader", "before"),
        (rollback, "rejoin", "before"),
    ):
        yield Case(operation, step, moment, "etcd_stopped", damage.etcd_stopped)

    # files and disks
    yield Case(rollback, "plan", "before", "wal_missing", damage.wal_missing, "held", lost=True)
    yield Case(rollback, "recover", "before", "wal_missing", damage.wal_missing, "held", lost=True)
    yield Case(rollback, "plan", "before", "mark_not_in_wal", damage.mark_not_in_wal, "held", lost=True)
    yield Case(rollback, "recover", "before", "auto_conf_strange", damage.auto_conf_strange, "held")
    yield Case(rollback, "recover", "before", "disk_full", damage.disk_full, "held", prepare=(damage.small_disk,))
    yield Case(rollback, "plan", "before", "disk_full", damage.disk_full, "held", prepare=(damage.small_disk,))
    yield Case(checkpoint, "record", "before", "disk_full", damage.disk_full, "held", prepare=(damage.small_disk,))

    # people, and other runs
    for step, member in (
        ("recover", "leader"),
        ("remove_cluster", "leader"),
        ("start_leader", "third"),
        ("start_leader", "leader"),
    ):
        yield Case(rollback, step, "before", "person_starts_patroni", damage.person_starts_patroni, member)
    for step, member in (("recover", "leader"), ("remove_cluster", "third"), ("start_leader", "leader")):
        yield Case(rollback, step, "before", "person_restores_yaml", damage.person_restores_and_starts, member)
    yield Case(rollback, "recover", "before", "second_rollback", damage.second_rollback)

    # Airflow
    yield Case(checkpoint, "hold", "during", "airflow_killed", damage.kill_airflow)
    yield Case(rollback, "recover", "during", "airflow_killed", damage.kill_airflow)
    yield Case(rollback, "rejoin", "during", "airflow_killed", damage.kill_airflow)


CASES = [*_killed(), *_cases()]
assert len({case.id for case in CASES}) == len(CASES), "two cases have one name"
assert set(SPREAD) <= {case.id for case in CASES}, set(SPREAD) - {case.id for case in CASES}
