"""The lag sensor's wait, in the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from bluegreen.exceptions import BluegreenError, RefusedError
from bluegreen.hooks.lag import look_at_lag


class LagTrigger(BaseTrigger):
    """Fire when no standby lags by more than the registry's limit.

    :param cluster: the cluster's name in the registry.
    :param held: the held member's name, or None.
    :param held_must_replay: judge every standby by replay.
    :param poll_seconds: how often to look.
    """

    def __init__(self, *, cluster: str, held: str | None, held_must_replay: bool, poll_seconds: float) -> None:
        super().__init__()
        self.cluster = cluster
        self.held = held
        self.held_must_replay = held_must_replay
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and its arguments."""
        return (
            "bluegreen.triggers.lag.LagTrigger",
            {
                "cluster": self.cluster,
                "held": self.held,
                "held_must_replay": self.held_must_replay,
                "poll_seconds": self.poll_seconds,
            },
        )

    def look(self) -> list[str]:
        """Look at every standby once."""
        return look_at_lag(self.cluster, held=self.held, held_must_replay=self.held_must_replay)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until all keep up; what is refused ends the wait."""
        while True:
            try:
                if not await sync_to_async(self.look)():
                    yield TriggerEvent({"status": "caught_up"})
                    return
            except RefusedError as error:
                yield TriggerEvent({"status": "refused", "message": str(error)})
                return
            except BluegreenError as error:
                self.log.warning("the lag is not known: %s", error)
            await asyncio.sleep(self.poll_seconds)
