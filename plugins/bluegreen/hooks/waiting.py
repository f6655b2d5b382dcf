"""Waiting with a deadline: until something is so, or the last reason why it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from bluegreen.exceptions import BluegreenError, RefusedError

T = TypeVar("T")


def wait_until(look: Callable[[], T], *, seconds: float, every_seconds: float = 0.2) -> T:
    """Call ``look`` until it returns, and give its result.

    :param look: raises an error of this project for as long as the thing is not so.
    :param seconds: how long to try.
    :raises BluegreenError: the last one, when the time is over; what is refused ends the wait at once.
    """
    retrying = Retrying(
        stop=stop_after_delay(seconds),
        wait=wait_fixed(every_seconds),
        retry=retry_if_exception(
            lambda error: isinstance(error, BluegreenError) and not isinstance(error, RefusedError)
        ),
        reraise=True,
    )
    return retrying(look)
