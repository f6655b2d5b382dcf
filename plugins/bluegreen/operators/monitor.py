"""Watch a cluster: lag, receivers, slots, disks, and the proof of its checkpoint."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.observability import stats

from bluegreen.checkpoint import Checkpoint, Phase, parse_owner
from bluegreen.clusters import Limits, load_registry
from bluegreen.exceptions import BluegreenError, CheckpointLostError, FailedForNowError, LockedError, UnreachableError
from bluegreen.forecast import Disk, seconds_until_full
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.journals import remove_journals
from bluegreen.hooks.proof import prove_held
from bluegreen.hooks.waiting import wait_until
from bluegreen.lag import lag_problems
from bluegreen.operators.base import (
    FINISHED_STATES,
    BluegreenOperator,
    is_finished,
    lock_cluster,
    owner_of,
    run_state,
)
from bluegreen.operators.rejoin import check_streaming
from bluegreen.operators.release import RELEASABLE, can_be_given_up, find, release
from bluegreen.topology import Topology, slot_name

if TYPE_CHECKING:
    from airflow.sdk import Context

RELEASE_AHEAD_SECONDS = 180
"""Three looks of a monitor that runs every minute."""

LOOK_TIMEOUT = timedelta(seconds=280)
"""A release alone may wait for nearly four minutes."""

STREAMS_SECONDS = 20
FORECAST_SHOWN_SECONDS = 7 * 86400
FIGURES_KEY = "figures"


class ListClustersOperator(BaseOperator):
    """Return the names of all clusters in the registry, those with a mistake too: their look says which.

    Example::

        clusters = ListClustersOperator(task_id="clusters")
    """

    def execute(self, context: Context) -> list[str]:
        """Read the registry."""
        registry = load_registry()
        return sorted({*registry.clusters, *registry.broken})


class MonitorClusterOperator(BluegreenOperator):
    """Look at one cluster, send its figures as metrics, and fail with figure, limit and advice beyond a limit.

    Where a checkpoint lives, its proof is made again. Before a disk of the leader or of the held standby
    is at its limit the hold is released, if the registry's ``auto_release`` allows it: a full primary is
    worse than a lost checkpoint.

    Example::

        look = MonitorClusterOperator.partial(task_id="look").expand(cluster=clusters.output)

    :raises FailedForNowError: with every limit that is passed, everything that could not be looked at, and
        every checkpoint that is lost or was released.
    """

    def __init__(self, *, retries: int = 0, execution_timeout: timedelta = LOOK_TIMEOUT, **kwargs: Any) -> None:
        super().__init__(retries=retries, execution_timeout=execution_timeout, **kwargs)

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Look at everything, then say all that is wrong."""
        silent = ""
        try:
            survey = hook.survey(patroni_must_answer=True, journals_may_differ=True)
        except UnreachableError as error:
            silent, survey = str(error), _without_patroni(hook, error)
        try:
            busy, unknown = _locks(survey, context)
        except LockedError as error:
            busy, unknown = "", [str(error)]
        look = _Look(hook, survey, self._earlier(context))
        look.disks()
        if busy:
            # What it does looks like faults from here, but a full disk is one whoever works.
            self.log.info("%s works on this cluster; only its disks are looked at meanwhile", busy)
            look.figures["busy"] = busy
            look.problems = look.full_disks
        elif silent or survey.topology is None:
            # Patroni may serve without its DCS, and the disks fill up meanwhile; a release needs Patroni's view.
            look.problems = [silent, *unknown, *look.problems]
            if survey.checkpoint and (why := look.must_release or look.leaders_disk):
                look.problems.append(f"nothing is released by itself while no Patroni answers, although {why}")
        else:
            look.problems += unknown
            look.replication(survey.topology)
            look.leaders_disk_decides()
            look.replay(survey.topology)
            look.checkpoint()
            look.problems += _abandoned(survey.checkpoint, context)
            if look.must_release and hook.cluster.auto_release and survey.checkpoint:
                look.problems = self._release(hook, survey, context, look.must_release) + look.problems
        figures = {"cluster": hook.cluster.name, "disks": look.disk_figures, **look.figures}
        # Airflow finds a run without a logical date, as people start it, before all others: it is never the last look.
        if context["dag_run"].logical_date is not None:
            context["ti"].xcom_push(key=FIGURES_KEY, value=figures)
        _send(hook.cluster.name, look.figures)
        for warning in look.warnings:
            self.log.warning("%s", warning)
        if look.problems:
            raise FailedForNowError(f"{hook.cluster.name}: " + "; ".join(look.problems))
        return {**figures, "warnings": look.warnings}

    def _earlier(self, context: Context) -> dict[str, Any]:
        ti = context["ti"]
        found = ti.xcom_pull(task_ids=self.task_id, key=FIGURES_KEY, include_prior_dates=True, map_indexes=ti.map_index)
        if isinstance(found, dict) and found.get("cluster") == self.cluster:
            return dict(found.get("disks") or {})
        return {}

    def _release(self, hook: ClusterHook, survey: Survey, context: Context, why: str) -> list[str]:
        """Give the checkpoint up; return what there is to say, whatever of it failed."""
        checkpoint = survey.checkpoint
        if checkpoint is None:
            return []
        if checkpoint.phase not in RELEASABLE:
            return [
                f"checkpoint {checkpoint.id} is not released by itself, although {why}: a rollback to it has begun "
                f"({checkpoint.phase.value})"
            ]
        said: list[str] = []
        try:
            lock_cluster(hook, context, "auto_release", survey, held=checkpoint.held, members=checkpoint.members)
            try:
                # A look takes its time: what it saw may have been released, and another one taken since.
                survey = hook.survey(patroni_must_answer=True)
                now = survey.known_checkpoint()
                if now is None or (now.id, now.phase) != (checkpoint.id, checkpoint.phase):
                    found = f"{now.id} ({now.phase.value})" if now else "none"
                    return [
                        f"checkpoint {checkpoint.id} is not released by itself, although {why}: when the cluster was "
                        f"locked for that, the checkpoint was {found}; the next look decides"
                    ]
                warnings = release(hook, survey, find(hook, survey, None))
                said += [
                    f"RELEASED: the hold of checkpoint {checkpoint.id} on {checkpoint.held} was released, because "
                    f"{why}. There is no way back to the state before the deployment any more",
                    *warnings,
                ]
                # Where the leader has no WAL for it any more, bluegreen_resume has it cloned; it needs the journal.
                wait_until(
                    lambda: check_streaming(hook, hook.patroni.topology(), checkpoint.held),
                    seconds=STREAMS_SECONDS,
                    every_seconds=1,
                )
                remove_journals(hook, checkpoint, set(checkpoint.members))
            finally:
                hook.unlock(owner_of(context, ""), checkpoint.members)
        except BluegreenError as error:
            what = "its journal was not removed" if said else f"checkpoint {checkpoint.id} could not be released"
            said.append(f"{what} ({error}); the next look tries again. Run bluegreen_resume if that does not help")
        return said


class _Look:
    """One look at one cluster, gathering figures, warnings and problems."""

    def __init__(self, hook: ClusterHook, survey: Survey, earlier: dict[str, Any]) -> None:
        self.hook = hook
        self.survey = survey
        self.earlier = earlier
        self.limits: Limits = hook.cluster.limits
        listed = {member.name for member in survey.topology.members} if survey.topology else set(survey.states)
        known = set(survey.checkpoint.members) - set(survey.checkpoint.hosts_down) if survey.checkpoint else set()
        self.figures: dict[str, Any] = {"members": {name: {} for name in sorted(listed | known)}}
        self.missing = sorted(known - listed)
        if checkpoint := survey.checkpoint:
            self.figures["checkpoint"] = {"id": checkpoint.id, "phase": checkpoint.phase.value, "held": checkpoint.held}
        self.disk_figures: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.problems: list[str] = [str(problem) for problem in survey.problems.values()]
        self.full_disks: list[str] = []
        self.must_release = ""
        self.leaders_disk = ""
        self.slots_are_known = False

    @property
    def held(self) -> str | None:
        checkpoint = self.survey.checkpoint
        return checkpoint.held if checkpoint else None

    @property
    def leaders(self) -> set[str]:
        """Who leads, or, where no Patroni says so, led when the checkpoint was taken."""
        if self.survey.topology:
            return {member.name for member in self.survey.topology.members if member.is_leader}
        return {self.survey.checkpoint.leader} if self.survey.checkpoint else set()

    def replication(self, topology: Topology) -> None:
        """Lag per standby and the WAL that slots keep back, on the primary."""
        try:
            leader = topology.leader
            sql = self.hook.sql(leader.name, leader.host, leader.port)
            rows, slots = self.hook.replication(topology), sql.rows("slots")
        except BluegreenError as error:
            self.problems.append(str(error))
            return
        for row in rows:
            if row["application_name"] in self.figures["members"]:
                figures = self.figures["members"][row["application_name"]]
                figures |= {name: row[name] for name in ("state", "flush_lag_bytes", "replay_lag_bytes")}
        problems = lag_problems(
            topology, rows, limit_bytes=self.limits.lag_bytes, held=self.held, held_must_replay=False
        )
        self.problems += [f"{line}; the limit is {self.limits.lag_bytes} (limits.lag_bytes)" for line in problems]
        if self.held and not any(row["application_name"] == self.held for row in rows):
            self.warnings.append(
                f"{self.held} is held and has no receiver (after a restart it starts only when replay goes on), so WAL "
                "piles up on the leader"
            )
        for slot in slots:
            self._slot(slot)
        self.slots_are_known = True

    def leaders_disk_decides(self) -> None:
        """Give the checkpoint up for the leader's disk only where the hold keeps WAL back there, or nobody knows."""
        held = self.figures["members"].get(self.held or "", {})
        # a slot that is lost keeps nothing
        kept = held.get("slot_wal_bytes") or 0
        if self.leaders_disk and (not self.slots_are_known or int(kept) > self.limits.lag_bytes):
            self.must_release = self.must_release or self.leaders_disk

    def _slot(self, slot: dict[str, Any]) -> None:
        retained = slot["retained_bytes"]
        name = next((one for one in self.figures["members"] if slot_name(one) == slot["slot_name"]), slot["slot_name"])
        if name in self.figures["members"]:
            self.figures["members"][name] |= {"slot_wal_bytes": retained, "slot_status": slot["wal_status"]}
        if slot["wal_status"] == "lost":
            self.problems.append(
                f"slot {name} is lost: its standby can only be cloned; if it is held, bluegreen_resume does so"
            )
        if name == self.held and retained is not None and int(retained) > self.limits.slot_wal_bytes:
            text = (
                f"{retained} bytes of WAL are kept back on the leader for {name}, the limit is "
                f"{self.limits.slot_wal_bytes} (limits.slot_wal)"
            )
            self.problems.append(f"{text}; run bluegreen_resume or bluegreen_rollback")
            self.must_release = self.must_release or text

    def replay(self, topology: Topology) -> None:
        """Replay delay and receiver, on each standby."""
        for member in topology.replicas:
            try:
                row = self.hook.sql(member.name, member.host, member.port).row("replay_delay")
            except BluegreenError as error:
                self.problems.append(str(error))
                continue
            delay = row["replay_delay_seconds"]
            self.figures["members"][member.name] |= {
                "replay_delay_seconds": delay,
                "receiver": row["receiver_status"],
            }
            if member.name == self.held:
                continue
            limit = self.limits.replay_age_seconds
            if delay is None or float(delay) > limit:
                found = "unknown" if delay is None else f"{float(delay):.0f} s"
                self.problems.append(
                    f"the replay delay of {member.name} is {found}, the limit is {limit} s (limits.replay_age); look "
                    "at its receiver and its disk"
                )

    def disks(self) -> None:
        """Free space on every member, with a forecast; the leader's and the held standby's decide."""
        names = [name for name in self.survey.states if name in self.figures["members"]]
        found, problems = self.hook.try_each(
            names, lambda node: node.data_directory(self.survey.states[node.member].config)
        )
        self.problems += [str(problem) for problem in problems.values()]
        for name, data in sorted(found.items()):
            for which in ("data", "wal"):
                try:
                    device, size, free = data.disk(which)
                except BluegreenError as error:
                    self.problems.append(f"{name}: {error}")
                    continue
                disk = Disk(device, size, free, data.epoch_seconds)
                self._disk(name, which, disk)

    def _disk(self, name: str, which: str, disk: Disk) -> None:
        key = f"{name}.{which}"
        full_in = seconds_until_full(self.earlier.get(key), disk)
        self.disk_figures[key] = {"device": disk.device, "free_bytes": disk.free_bytes, "at": disk.at}
        figures = self.figures["members"][name]
        figures[f"{which}_free_percent"] = round(disk.free_percent, 2)
        figures[f"{which}_full_in_seconds"] = None if full_in is None else round(full_in)
        limit = self.limits.disk_free_percent
        soon = full_in is not None and full_in < FORECAST_SHOWN_SECONDS
        forecast = f", and is full in {full_in / 60:.0f} min if it goes on like this" if soon and full_in else ""
        text = f"{name}: {disk.device} has {disk.free_percent:.1f} % free{forecast}; the limit is {limit:g} %"
        above_limit = disk.free_bytes - disk.size_bytes * limit / 100
        at_limit_in = None if full_in is None or not disk.free_bytes else full_in * above_limit / disk.free_bytes
        problem = f"{text} (limits.disk_free_percent); make room, or end the hold"
        if disk.free_percent < limit and problem not in self.problems:
            self.problems.append(problem)
            self.full_disks.append(problem)
        if disk.free_percent < limit or (at_limit_in is not None and at_limit_in < RELEASE_AHEAD_SECONDS):
            if name == self.held:
                self.must_release = self.must_release or text
            elif name in self.leaders:
                self.leaders_disk = self.leaders_disk or text

    def checkpoint(self) -> None:
        """Prove the checkpoint again, and look at its age."""
        checkpoint = self.survey.checkpoint
        if checkpoint is None:
            return
        self.problems += [
            f"{name}, a member of checkpoint {checkpoint.id}, is not in the cluster: its Patroni does not run, or does "
            "not reach the DCS; expected it there, since neither a resume nor a rollback is complete without it"
            for name in self.missing
        ]
        if strangers := checkpoint.strangers(self.figures["members"]):
            self.warnings.append(
                f"{', '.join(strangers)} joined the cluster after checkpoint {checkpoint.id}; a rollback refuses while "
                "it runs"
            )
        if checkpoint.phase is Phase.TAKEN_OVER and checkpoint.hosts_down:
            self.warnings.append(
                f"the rollback to checkpoint {checkpoint.id} waits for {', '.join(checkpoint.hosts_down)}, declared "
                "down: when it is back, its Patroni configuration aside, run bluegreen_rollback again without it in "
                "hosts_down"
            )
            return
        if checkpoint.phase is not Phase.HELD:
            self.problems.append(
                f"checkpoint {checkpoint.id} on {checkpoint.held} is {checkpoint.phase.value!r}, and no run works on "
                "it: "
                + (
                    "the standby may be held, and no rollback can use it; run bluegreen_resume"
                    if checkpoint.phase in RELEASABLE
                    else "run bluegreen_rollback again"
                    + (", or bluegreen_resume to keep what is" if can_be_given_up(self.survey, checkpoint) else "")
                )
            )
            return
        try:
            prove_held(self.hook, checkpoint)
        except CheckpointLostError as error:
            self.problems.append(f"LOST: {error}")
        except BluegreenError as error:
            self.problems.append(f"checkpoint {checkpoint.id} could not be proven: {error}")
        self._expiry(checkpoint)

    def _expiry(self, checkpoint: Checkpoint) -> None:
        try:
            expires = datetime.fromisoformat(checkpoint.expires_at)
        except ValueError:
            self.warnings.append(f"checkpoint {checkpoint.id} has no readable expiry: {checkpoint.expires_at!r}")
            return
        if datetime.now(UTC) > expires:
            self.warnings.append(
                f"checkpoint {checkpoint.id} is past its expiry ({checkpoint.expires_at}); run bluegreen_resume, or "
                "bluegreen_rollback while it is still wanted"
            )


def _without_patroni(hook: ClusterHook, why: UnreachableError) -> Survey:
    """Look at the nodes alone.

    :raises UnreachableError: why no Patroni answered, where nothing can be read there either.
    """
    try:
        return hook.survey(journals_may_differ=True)
    except BluegreenError:
        raise why from None


def _locks(survey: Survey, context: Context) -> tuple[str, list[str]]:
    """Return which run holds the cluster and goes on, or an empty text, and what is to say of one that is not known.

    A lock whose run this Airflow does not know keeps everybody out, and nobody may be working.
    """
    owners = [parse_owner(state.lock, where=name) for name, state in survey.states.items() if state.lock is not None]
    states = [(owner, run_state(context, owner)) for owner in owners]
    busy = next((str(owner) for owner, state in states if state is not None and state not in FINISHED_STATES), "")
    unknown = [
        f"locked by {owner}, a run that this Airflow does not know; expected nobody. If it is certainly dead, start "
        f"the next run with break_lock = {owner.run_id}"
        for owner, state in states
        if state is None
    ]
    return busy, unknown[:1]


def _abandoned(checkpoint: Checkpoint | None, context: Context) -> list[str]:
    """Say of a checkpoint that the deployment which took it, and which ends it by itself, has ended without that."""
    deployment = checkpoint.deployment if checkpoint and checkpoint.phase is Phase.HELD else None
    if checkpoint is None or deployment is None or not is_finished(context, deployment):
        return []
    return [
        f"checkpoint {checkpoint.id} on {checkpoint.held} is held for {deployment}, which has ended; run "
        "bluegreen_resume, or bluegreen_rollback"
    ]


def _send(cluster: str, figures: dict[str, Any]) -> None:
    """Send every number as a gauge of Airflow's metrics (StatsD or OpenTelemetry)."""
    for member, values in figures["members"].items():
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                stats.gauge(f"bluegreen.{cluster}.{member}.{name}", float(value))
    if "busy" not in figures:
        stats.gauge(f"bluegreen.{cluster}.checkpoint_held", 1.0 if "checkpoint" in figures else 0.0)
