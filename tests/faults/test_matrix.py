"""Every fault ends in the state before the operation or in the one after it, and the report says which."""

from __future__ import annotations

from typing import Any

import pytest
from tests.faults.cases import CASES, Case
from tests.faults.conftest import Results, Stage
from tests.faults.play import Result, play


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fault(case: Case, stage: Stage, place_of: Any, results: Results) -> None:
    place = place_of(case)
    try:
        found = play(case, place, stage.deployed)
    except Exception as error:
        results.add(Result(case.id, wrong=[f"not played to its end: {error}"]))
        raise
    results.add(found)
    print(f"{found.verdict} after {found.seconds} s; said: {found.said}; again: {found.again}")
    assert not found.wrong, f"{case.id}: {found.said}\n" + "\n".join(found.wrong)
