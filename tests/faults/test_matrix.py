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
    conf = {**case.conf, **_params(case, place.scene)}
    try:
        found = play(case, place, stage.deployed, conf)
    except Exception as error:
        results.add(Result(case.id, wrong=[f"not played to its end: {error}"]))
        raise
    results.add(found)
    print(f"{found.verdict} after {found.seconds} s; said: {found.said}; again: {found.again}")
    assert not found.wrong, f"{case.id}: {found.said}\n" + "\n".join(found.wrong)


def _params(case: Case, scene: Any) -> dict[str, Any]:
    if case.operation == "checkpoint":
        return {"label": "a fault", "standby": scene.held}
    if case.operation == "resume":
        return {"checkpoint": scene.record["id"]}
    return scene.rollback_conf()
