"""Put the old cluster back into service after a rollback that failed before the promotion."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.exceptions import BluegreenError, CheckpointLostError, FailedForNowError, RefusedError, UnreachableError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.leadership import check_another_leads, start_patroni
from bluegreen.hooks.node import DataDirectory, NodeHook
from bluegreen.hooks.promotion import astray, begun, promoted
from bluegreen.hooks.proof import LOST, prove_held
from bluegreen.hooks.standalone import Standalone
from bluegreen.hooks.stopping import cluster_state, is_clean
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import BluegreenOperator, require_lock, task_states
from bluegreen.recovery.versions import HoldMechanism

if TYPE_CHECKING:
    from airflow.sdk import Context

LEADS_SECONDS = 60
RECOVERS_SECONDS = 900
SERVICE_SECONDS = 90
# where Patroni runs on all of them already
STARTED_SECONDS = 20
PROOF_SECONDS = 60
GO_ON = "Mend that, then clear the task put_back, or run bluegreen_rollback again: it goes on where this one stopped"


class PutBackOperator(BluegreenOperator):
    """Undo what a failed rollback has done, if the held member was not promoted yet.

    The standby's signal file and settings go back, the hold stays in place, the members'
    configurations come back, the old leader starts first. Where the held member cannot be read and its
    recovery never began, the others alone are put back; another one that cannot be read, and is not the
    leader, keeps nobody from serving. The checkpoint still lives. After the
    promotion nothing is undone: there is only forward.

    Example::

        put_back = PutBackOperator(task_id="put_back", cluster="orders", after=("stop", "recover"))

    :param after: the tasks after whose failure it is put back; it waits for all of them to end.
    :raises FailedForNowError: when the old cluster did not come back in time.
    """

    def __init__(self, *, after: Sequence[str], **kwargs: Any) -> None:
        kwargs.setdefault("trigger_rule", "all_done")
        # A member that cannot be reached may be back in a moment, and the cluster serves nobody meanwhile.
        kwargs.setdefault("retries", 3)
        kwargs.setdefault("retry_delay", timedelta(seconds=5))
        super().__init__(**kwargs)
        self.after = tuple(after)

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Look where the rollback stopped; undo, start, prove."""
        if not set(task_states(context, self.after).values()) & {"failed", "upstream_failed"}:
            raise AirflowSkipException("nothing failed, so nothing is put back")
        survey = hook.survey()
        checkpoint = survey.known_checkpoint()
        some_aside = any(state.aside for state in survey.states.values())
        if checkpoint is None:
            if some_aside:
                raise RefusedError(
                    f"{hook.cluster.name} holds no checkpoint, and Patroni's configuration is aside on "
                    f"{', '.join(sorted(name for name, state in survey.states.items() if state.aside))}; expected a "
                    "journal that says why. Nothing is put back: bring it back by hand, the leader's first"
                )
            return {"put_back": False, "checkpoint": None, "untouched": True}
        if checkpoint.past_no_return:
            return {"put_back": False, "checkpoint": checkpoint.public()}
        if checkpoint.phase is Phase.HELD and not some_aside:
            return {"put_back": False, "checkpoint": checkpoint.public(), "untouched": True}
        try:
            require_lock(hook, context, survey)
        except RefusedError as error:
            self.log.warning("%s", error)
            return {"put_back": False, "checkpoint": checkpoint.public(), "locked_out": True}
        down = set(checkpoint.hosts_down)
        unread = set(checkpoint.members) - down - set(survey.states)
        if unread and not some_aside and _all_run(survey, unread):
            return {"put_back": False, "checkpoint": checkpoint.public(), "untouched": True}
        leader = _leader_before(survey, checkpoint)
        survey.require({leader} - down - {checkpoint.held})
        if leader not in {*survey.states, *down, checkpoint.held}:
            raise FailedForNowError(f"{leader}, the leader before, was not looked at; expected it to be read first")
        others = [name for name in checkpoint.others if name in survey.states and name not in down]
        left = _left_out(survey, unread - {checkpoint.held})
        others_serve = partial(self._start, hook, survey, checkpoint, others, leader)
        if others and checkpoint.held not in survey.states and checkpoint.phase is Phase.STOPPING:
            # Recovery is written into every journal before it begins, so nothing was promoted there.
            return _unproven(
                checkpoint,
                left + others_serve(),
                f"{checkpoint.held}, the held member, cannot be read, so only the others were put back into "
                "service. When it answers again, run bluegreen_rollback again: it goes on where this one stopped",
            )
        survey.require([checkpoint.held])
        node, state = hook.nodes[checkpoint.held], survey.states[checkpoint.held]
        held = Standalone(node, state, checkpoint)
        found = node.data_directory(state.config)
        if state.saved and begun(checkpoint, found) is None:
            held.stop_unpromoted()
            # it may have come to the mark before it was told to stop, and ends its promotion then
            found = node.data_directory(state.config)
        # elsewhere Patroni may have promoted it, and it leads
        if state.is_alone and others and astray(checkpoint, found):
            held.stop_unpromoted()
            found = node.data_directory(state.config)
            if astray(checkpoint, found):
                return _lost_astray(hook, checkpoint, held, others, left + others_serve(), cluster_state(found))
        if begun(checkpoint, found) is not None:
            if promoted(checkpoint, found) or found.server_processes or not (state.is_alone and others):
                raise RefusedError(
                    f"{node.where} has begun the timeline from the mark, so nothing is put back; there is only "
                    "forward: run bluegreen_rollback again"
                )
            return _unproven(
                checkpoint,
                left + others_serve(),
                f"{checkpoint.held}, the held member, had begun the timeline from the mark, and its server ended "
                f"before it was promoted there. It stays stopped, and the others serve without it. {GO_ON}. To keep "
                f"the deployment instead, {_clone_by_hand(held)}",
            )
        if state.saved:
            try:
                held.close_again()
            except FailedForNowError as error:
                if isinstance(error, UnreachableError) or not others:
                    raise
                return _unproven(
                    checkpoint,
                    left + others_serve(),
                    f"{checkpoint.held}, the held member, was not put back ({error}); it is stopped, and the others "
                    f"serve without it. {GO_ON}",
                )
        warnings = left + self._start(hook, survey, checkpoint, [*others, checkpoint.held], leader)
        lost = ""
        try:
            wait_until(partial(_still_held, hook, checkpoint), seconds=PROOF_SECONDS, every_seconds=1)
        except _LostSoFarError as error:
            # It can be released, but never rolled back to: a rollback proves it again, and is refused.
            lost = str(error)
        except FailedForNowError as error:
            return _unproven(
                checkpoint,
                warnings,
                f"{checkpoint.held}, the held member, has not proven its hold ({error}); the others serve without "
                f"it. {GO_ON}",
            )
        checkpoint = checkpoint.advanced(Phase.HELD, hosts_down=[])
        hook.write_journal(checkpoint, needed=[checkpoint.held, *others])
        return {"put_back": True, "lost": lost, "checkpoint": checkpoint.public(), "warnings": warnings}

    def _start(
        self, hook: ClusterHook, survey: Survey, checkpoint: Checkpoint, members: list[str], leader: str
    ) -> list[str]:
        """Bring the members' configurations back and start Patroni on them; return warnings.

        The old leader starts first and leads before the others start: what it has committed since they were stopped
        is on no other member, and one of them would win against a server that is not up yet. Where all run
        already, they have had the time of the try that started them.
        """

        def back(other: NodeHook) -> None:
            other.done(shell.bring_back(other.config_path), "bringing Patroni's configuration back")

        hook.on_each(members, back)
        serves = partial(check_another_leads, hook, checkpoint.held)
        all_run = all(hook.on_each(members, _patroni_runs).values())
        leads_seconds, service_seconds = (STARTED_SECONDS,) * 2 if all_run else (LEADS_SECONDS, SERVICE_SECONDS)
        warnings: list[str] = []
        if leader in members and leader != checkpoint.held:
            data = partial(hook.nodes[leader].data_directory, survey.states[leader].config)
            # A server that was not shut down cleanly first replays its WAL, which takes its time.
            most = leads_seconds if is_clean(data()) else RECOVERS_SECONDS
            hook.on_each([leader], start_patroni)
            leads = partial(serves, leader)
            warnings = self._wait_for_leader(leads, leader, data, seconds=leads_seconds, most=most)
        last = {checkpoint.held} & set(members)
        for together in (set(members) - last - {leader}, last):
            hook.on_each(together, start_patroni)
        wait_until(serves, seconds=service_seconds, every_seconds=0.5)
        return warnings

    def _wait_for_leader(
        self,
        leads: Callable[[], object],
        leader: str,
        data: Callable[[], DataDirectory],
        *,
        seconds: float,
        most: float,
    ) -> list[str]:
        """Wait until the old leader leads, for longer than a moment only while its server works on its data."""
        begin = time.monotonic()
        while True:
            try:
                wait_until(leads, seconds=seconds, every_seconds=0.3)
                return []
            except FailedForNowError as error:
                spent = time.monotonic() - begin
                if spent >= most or not _server_runs(data):
                    return [
                        f"{leader}, the leader before, does not lead again after {spent:.0f} s ({error}), so the "
                        "others were started too. If another leads now, what was committed on it alone is lost"
                    ]
                self.log.info("%s recovers from its crash, %.0f s so far: %s", leader, spent, error)


def _patroni_runs(node: NodeHook) -> bool:
    return node.service_status().running


def _server_runs(data: Callable[[], DataDirectory]) -> bool:
    """Tell whether a server works there; one on a node that cannot be read is not waited for."""
    try:
        return data().server_processes > 0
    except BluegreenError:
        return False


def _leader_before(survey: Survey, checkpoint: Checkpoint) -> str:
    """Return who leads, or led when the rollback began: the member with the last commits."""
    return survey.topology.leader.name if survey.topology and _has_leader(survey.topology) else checkpoint.leader


def _left_out(survey: Survey, members: set[str]) -> list[str]:
    """Say of members that cannot be read, and on which nothing depends, that they are left as they are."""
    return [
        f"{name} cannot be read ({survey.problems[name]}), so it was left as it is and may be stopped. When it "
        "answers, clear the task put_back, which brings it back too"
        for name in sorted(members & set(survey.problems))
    ]


def _unproven(checkpoint: Checkpoint, warnings: list[str], why: str) -> dict[str, Any]:
    """The others serve, and of the held member is not known whether it is held: the journal stays as it is."""
    return {"put_back": True, "unproven": why, "checkpoint": checkpoint.public(), "warnings": [*warnings, why]}


def _clone_by_hand(held: Standalone) -> str:
    """Say how a held member whose data nobody can use comes back as a standby of the others."""
    node = held.node
    saved = {name: path for name, path in held.originals.items() if not path.startswith(f"{held.data_dir}/")}
    moves = [f"{node.config_path}{shell.SAVED}/{name} back to {path}" for name, path in saved.items()]
    moves.append(f"{node.config_path}{shell.ASIDE} back to {node.config_path}")
    return (
        f"remove its data directory, move {', '.join(moves)} and start Patroni, which clones it; then run "
        "bluegreen_resume"
    )


def _lost_astray(
    hook: ClusterHook, checkpoint: Checkpoint, held: Standalone, others: list[str], warnings: list[str], state: str
) -> dict[str, Any]:
    """The others serve; the held one went on past the mark by itself, so its data are no standby's of theirs."""
    lost = (
        f"checkpoint {checkpoint.id} is lost: the server of {held.node.where} was {state!r}, so it has ended its "
        "recovery elsewhere than at the mark. It stays stopped, and the others serve without it. To have it "
        f"back, {_clone_by_hand(held)}"
    )
    checkpoint = checkpoint.advanced(Phase.HELD, hosts_down=[])
    hook.write_journal(checkpoint, needed=others, optional=[checkpoint.held])
    return {"put_back": True, "lost": lost, "checkpoint": checkpoint.public(), "warnings": warnings}


def _all_run(survey: Survey, members: set[str]) -> bool:
    """Tell whether Patroni knows one leader and calls these members running."""
    topology = survey.topology
    if topology is None or not _has_leader(topology):
        return False
    return members <= {member.name for member in topology.members if member.is_running}


def _has_leader(topology: Any) -> bool:
    return sum(member.is_leader for member in topology.members) == 1


class _LostSoFarError(FailedForNowError):
    """The hold is not proven, but a member that has just started receives WAL again that its files lack."""


def _still_held(hook: ClusterHook, checkpoint: Checkpoint) -> None:
    try:
        _prove(hook, checkpoint)
    except CheckpointLostError as error:
        raise _LostSoFarError(str(error)) from error


def _prove(hook: ClusterHook, checkpoint: Checkpoint) -> None:
    prove_held(hook, checkpoint)
    if checkpoint.hold is not None and checkpoint.hold.mechanism is HoldMechanism.REPLAY_PAUSE:
        row = hook.sql_of(checkpoint, checkpoint.held).row("hold_settings")
        if row["replay_paused"] is not True:
            raise CheckpointLostError(
                f"checkpoint {checkpoint.id} is lost: the pause of the replay on {checkpoint.held} ended when its "
                f"server was stopped; {LOST}"
            )
