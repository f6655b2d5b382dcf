"""Wait until the standbys keep up with the leader."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from bluegreen.exceptions import BluegreenError, FailedForNowError, RefusedError
from bluegreen.hooks.lag import look_at_lag
from bluegreen.operators.base import push_problem
from bluegreen.triggers.lag import LagTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class LagSensor(BaseSensorOperator):
    """Succeed when no standby lags by more than the registry's ``lag_bytes``, nor ``lag_seconds`` after a release.

    The held standby is judged by what it has received, since it replays nothing; after a release,
    with ``held_must_replay``, by what it has replayed. The first look is made at once; only when a
    standby lags does a deferrable sensor give its worker slot back. Where the path is hot, use it with
    ``deferrable=False``: a deferral costs seconds.

    Example::

        lag = LagSensor(task_id="lag", cluster="orders", deferrable=True)

    :param cluster: the cluster's name in the registry (templated).
    :param held: the held member's name, or None (templated).
    :param held_must_replay: judge every standby by replay.
    :param deferrable: wait in the triggerer.
    :raises FailedForNowError: when the lag did not fall within ``timeout`` seconds.
    """

    template_fields: Sequence[str] = ("cluster", "held")

    def __init__(
        self,
        *,
        cluster: str = "{{ params.cluster }}",
        held: Any = None,
        held_must_replay: bool = False,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("poke_interval", 2)
        kwargs.setdefault("timeout", 3600)
        super().__init__(**kwargs)
        self.cluster = cluster
        self.held = held
        self.held_must_replay = held_must_replay
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Look once, then wait in the way that was asked for."""
        try:
            if not self.deferrable:
                return super().execute(context)
            if self.poke(context):
                return None
        except BluegreenError as error:
            push_problem(context, error)
            raise
        self.defer(
            trigger=LagTrigger(
                cluster=self.cluster,
                held=self.held or None,
                held_must_replay=self.held_must_replay,
                poll_seconds=float(self.poke_interval),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
        return None

    def poke(self, context: Context) -> bool:
        """Look at every standby once; a look that fails is no success, and is tried again."""
        try:
            problems = look_at_lag(self.cluster, held=self.held or None, held_must_replay=self.held_must_replay)
        except RefusedError:
            raise
        except BluegreenError as error:
            self.log.warning("the lag is not known: %s", error)
            return False
        for problem in problems:
            self.log.info("%s", problem)
        return not problems

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Take the trigger's answer.

        :raises FailedForNowError: when it is not that the lag has fallen.
        """
        if event.get("status") != "caught_up":
            error = FailedForNowError(f"waiting for the lag ended with: {event.get('message', 'no message')}")
            push_problem(context, error)
            raise error
