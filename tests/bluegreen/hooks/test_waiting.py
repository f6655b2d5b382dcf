from __future__ import annotations

import time

import pytest

from bluegreen.exceptions import FailedForNowError, LockedError, OutcomeUnknownError, RefusedError, UnreachableError
from bluegreen.hooks.waiting import wait_until


class Look:
    """Fails with each error in turn, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        if self.errors:
            raise self.errors.pop(0)
        return "so"


def test_what_is_so_at_once_is_looked_at_once() -> None:
    look = Look()
    assert wait_until(look, seconds=5) == "so" and look.times == 1


def test_it_looks_again_until_it_is_so() -> None:
    look = Look(FailedForNowError("a"), UnreachableError("b"), OutcomeUnknownError("c"))
    assert wait_until(look, seconds=5, every_seconds=0.01) == "so" and look.times == 4


def test_when_the_time_is_over_the_last_reason_is_given_and_not_a_libraries_error() -> None:
    look = Look(*(FailedForNowError(f"reason {number}") for number in range(1000)))
    started = time.monotonic()
    with pytest.raises(FailedForNowError, match=r"reason \d+") as caught:
        wait_until(look, seconds=0.2, every_seconds=0.02)
    assert time.monotonic() - started < 2
    assert str(caught.value) == f"reason {look.times - 1}" and look.times > 1


@pytest.mark.parametrize("error", [RefusedError("no"), LockedError("no"), KeyError("a bug"), OSError("disk")])
def test_what_is_refused_or_no_error_of_ours_ends_the_wait_at_once(error: Exception) -> None:
    look = Look(error)
    with pytest.raises(type(error)):
        wait_until(look, seconds=5)
    assert look.times == 1


def test_without_time_it_still_looks_once() -> None:
    look = Look(FailedForNowError("a"))
    with pytest.raises(FailedForNowError, match="a"):
        wait_until(look, seconds=0)
    assert look.times == 1
