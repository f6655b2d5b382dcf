"""Waiting with a deadline: until something is so, or the last reason why it is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from bluegreen.exceptions import BluegreenError, RefusedError

T = TypeVar("T")

log = logging.getLogger(__name__)


def wait_until(look: Callable[[], T], *, seconds: float, every_seconds: float = 0.2) -> T:
    """Call ``look`` until it returns, and give its result. Each new reason to wait is logged.

    :param look: raises an error of this project for as long as the thing is not so.
    :param seconds: how long to try.
    :raises BluegreenError: the last one, when the time is over; what is refused ends the wait at once.
    """
    begin, told = time.monotonic(), ""

    def tell(attempt: RetryCallState) -> None:
        nonlocal told
        reason = str(attempt.outcome.exception()) if attempt.outcome else ""
        if reason != told:
            told = reason
            log.info("waiting, %.1f of at most %g s: %s", time.monotonic() - begin, seconds, reason)

    retrying = Retrying(
        stop=stop_after_delay(seconds),
        wait=wait_fixed(every_seconds),
        retry=retry_if_exception(
            lambda error: isinstance(error, BluegreenError) and not isinstance(error, RefusedError)
        ),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(look)
