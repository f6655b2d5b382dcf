"""Let a held standby go on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bluegreen import shell
from bluegreen.checkpoint import Checkpoint, Phase, check_id
from bluegreen.exceptions import FailedForNowError, LockedError, RefusedError, UnreachableError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.hold import check_released, clean_text, require_in_place
from bluegreen.hooks.journals import remove_journals
from bluegreen.hooks.replay import replay_position, set_replay_going
from bluegreen.hooks.waiting import wait_until
from bluegreen.operators.base import (
    BluegreenOperator,
    deployment_of,
    is_running,
    lock_cluster,
    owner_of,
    survey_as_owner,
)
from bluegreen.recovery.versions import HoldMechanism
from bluegreen.topology import is_being_cloned

if TYPE_CHECKING:
    from airflow.sdk import Context

ANSWERS_SECONDS = 60
ANSWERS_AGAIN_SECONDS = 5
TAKES_EFFECT_SECONDS = 40
RELEASABLE = frozenset({Phase.HOLDING, Phase.HELD, Phase.RELEASING})

log = logging.getLogger(__name__)


class PlanResumeOperator(BluegreenOperator):
    """Lock the cluster and check that its checkpoint may be released.

    Returns ``checkpoint`` (the record) and ``warnings``.

    Example::

        check = PlanResumeOperator(task_id="check", cluster="orders", checkpoint=None)

    :param checkpoint: the id that must be held, or None for whichever is (templated).
    :param break_lock: the run whose lock is broken (templated).
    :raises RefusedError: when there is none, it is another one, or a rollback has begun.
    """

    template_fields: Sequence[str] = (*BluegreenOperator.template_fields, "checkpoint", "break_lock")

    def __init__(self, *, checkpoint: Any = None, break_lock: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.checkpoint = checkpoint
        self.break_lock = break_lock

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Find the checkpoint, refuse or lock."""
        survey = hook.survey(patroni_must_answer=True)
        checkpoint = find(hook, survey, self.checkpoint)
        deployment = checkpoint.deployment
        own = deployment_of(context)
        if deployment and is_running(context, deployment) and not (own and own.is_same_run(deployment)):
            raise LockedError(
                f"checkpoint {checkpoint.id} belongs to {deployment}, which is still running; expected it to have "
                "ended. Wait for it: it resumes or rolls back by itself"
            )
        warnings = lock_cluster(
            hook,
            context,
            "resume",
            survey,
            held=checkpoint.held,
            members=checkpoint.members,
            breaks=self.break_lock or None,
        )
        return {"checkpoint": checkpoint.public(), "held": checkpoint.held, "warnings": warnings}


class ReleaseStandbyOperator(BluegreenOperator):
    """Take the hold out of the standby's Patroni configuration, and read back that it is gone.

    The configuration goes back byte for byte if nobody edited it since; otherwise only the hold's own
    keys are taken out, and a warning says so.

    Example::

        release = ReleaseStandbyOperator(task_id="release", cluster="orders")

    :raises RefusedError: when nothing is held, or a rollback has begun.
    :raises FailedForNowError: when the release did not take effect in time.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Write the journal, put the configuration back, reload, read back."""
        survey = survey_as_owner(hook, context, patroni_must_answer=True)
        checkpoint = find(hook, survey, None)
        return {
            "checkpoint": checkpoint.public(),
            "held": checkpoint.held,
            "warnings": release(hook, survey, checkpoint),
        }


class UndoCheckpointOperator(BluegreenOperator):
    """Let the standby go on after this run's own checkpoint failed, and remove its journal.

    Another run's checkpoint is left alone, and so is one that this run had finished before it was cleared.

    Example::

        undo = UndoCheckpointOperator(task_id="undo", cluster="orders", trigger_rule="one_failed")

    :raises FailedForNowError: when the release did not take effect in time.
    """

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Release and remove, if there is something of this run."""
        survey = hook.survey(patroni_must_answer=True)
        owner = owner_of(context, "checkpoint")
        checkpoint = survey.known_checkpoint()
        if checkpoint is None:
            return {"released": False, "warnings": []}
        if not checkpoint.taken_by.is_same_run(owner):
            return {"released": False, "other": checkpoint.id, "warnings": []}
        hook.refuse_foreign_lock(owner, survey.states)
        holds_lock = hook.holds_lock(owner, survey.states)
        if checkpoint.phase is Phase.HELD and (not holds_lock or self._was_reported(context, checkpoint)):
            return {"released": False, "kept": checkpoint.id, "warnings": []}
        if not holds_lock:
            lock_cluster(hook, context, "checkpoint", survey, held=checkpoint.held, members=checkpoint.members)
        warnings = release(hook, survey, find(hook, survey, None))
        remove_journals(hook, checkpoint, set(checkpoint.members))
        return {"released": True, "warnings": warnings}

    def _was_reported(self, context: Context, checkpoint: Checkpoint) -> bool:
        """Tell whether an earlier pass of this run has told people that its checkpoint is held: Airflow keeps that."""
        for name in self.get_flat_relative_ids(upstream=False):
            report = context["ti"].xcom_pull(task_ids=name)
            if not isinstance(report, dict):
                continue
            held = (report.get("checkpoint") or {}).get("id") if report.get("result") == "held" else None
            if checkpoint.id in (held, report.get("kept")):
                return True
        return False


def find(hook: ClusterHook, survey: Survey, wanted: object) -> Checkpoint:
    """Return the checkpoint that is held and may be released.

    :raises RefusedError: when there is none, another one, or a rollback has begun.
    """
    checkpoint = survey.known_checkpoint()
    if checkpoint is None:
        raise RefusedError(f"{hook.cluster.name} holds no checkpoint (no journal on any member); nothing to resume")
    if wanted and check_id(str(wanted)) != checkpoint.id:
        raise RefusedError(f"the checkpoint held is {checkpoint.id}, found {wanted!r}; give the one that is held")
    if checkpoint.phase not in RELEASABLE and not can_be_given_up(survey, checkpoint):
        raise RefusedError(
            f"a rollback to checkpoint {checkpoint.id} has begun ({checkpoint.phase.value}); it cannot be resumed. "
            "Finish it: run bluegreen_rollback again"
        )
    return checkpoint


def can_be_given_up(survey: Survey, checkpoint: Checkpoint) -> bool:
    """Tell whether a rollback that had begun has stopped nobody, or everybody is back: it moves files aside first."""
    states = [survey.states.get(name) for name in checkpoint.members]
    begun = checkpoint.phase in {Phase.STOPPING, Phase.RECOVERING}
    return begun and all(state is not None and not state.aside for state in states)


def _position_before(hook: ClusterHook, checkpoint: Checkpoint, *, seconds: float) -> int | None:
    """Return up to where the held standby has replayed; None where it does not answer.

    One that crashed is brought back by Patroni in its next turn, and recovers before it answers. One that was restarted
    may not answer until its hold is gone: what it needs to let somebody in may lie behind the mark.

    :param seconds: how long it is waited for; where an earlier try has done so already, hardly.
    """
    try:
        position, _ = wait_until(partial(replay_position, hook, checkpoint), seconds=seconds, every_seconds=1)
    except UnreachableError as error:
        log.warning("%s: the hold is taken out all the same", error)
        return None
    return position


def _takes_writes(hook: ClusterHook, checkpoint: Checkpoint) -> bool:
    """Tell whether the held member was promoted; one that does not answer is taken for the standby that it was."""
    try:
        return hook.sql_of(checkpoint, checkpoint.held).row("identity")["in_recovery"] is False
    except FailedForNowError as error:
        log.warning("whether %s is a standby still is not known: %s", checkpoint.held, error)
        return False


def release(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> list[str]:
    """Release a hold, see that replay goes on, and return warnings.

    :raises FailedForNowError: when its server did not answer, or the release did not take effect, in time.
    """
    survey.require([checkpoint.held])
    node, state = hook.nodes[checkpoint.held], survey.states[checkpoint.held]
    require_in_place(node, state)
    again = checkpoint.phase is Phase.RELEASING
    cloned = again and is_being_cloned(survey.topology, checkpoint.held)
    if not again:
        checkpoint = checkpoint.advanced(Phase.RELEASING, hosts_down=[])
        hook.write_journal(checkpoint, needed=[checkpoint.held], optional=checkpoint.others)
    warnings: list[str] = []
    if checkpoint.hold is not None:
        seconds = ANSWERS_AGAIN_SECONDS if again else ANSWERS_SECONDS
        leads = not cloned and _takes_writes(hook, checkpoint)
        since = None if cloned or leads else _position_before(hook, checkpoint, seconds=seconds)
        clean, warning = clean_text(node, state, checkpoint.hold)
        if state.folder:
            node.done(
                shell.remove_files(f"{node.config_path}/{shell.HOLD_FILE}"), "removing the hold's configuration file"
            )
        elif clean is None:
            node.done(shell.restore_original(node.config_path), "putting Patroni's configuration back")
        else:
            warnings.append(warning)
            node.done(shell.replace_files({node.config_path: clean}), "taking the hold out of Patroni's configuration")
        # The original stays until the journal goes: only by it can a second try tell the owner's settings from ours.
        address = checkpoint.members[checkpoint.held]
        hook.patroni.reload(address.api_url)
        if leads:
            # Nothing replays there, and a restart would be an outage.
            return [*warnings, f"{checkpoint.held} takes writes: somebody promoted it during the hold"]
        if cloned:
            return warnings
        if checkpoint.hold.mechanism is HoldMechanism.REPLAY_PAUSE:
            hook.sql_of(checkpoint, checkpoint.held).rows("resume_replay")
        wait_until(partial(check_released, hook, checkpoint), seconds=TAKES_EFFECT_SECONDS)
        if since is None:
            since, _ = replay_position(hook, checkpoint)
        warnings += set_replay_going(hook, survey, checkpoint, since)
    return warnings
