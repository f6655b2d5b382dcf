"""Right after a promotion the members' own reports differ for a moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bluegreen.operators import preflight
from bluegreen.operators.preflight import _settled
from bluegreen.topology import Topology, check_standby, parse_topology


def topology(leader: int, replica: int, *, down: int | None = None) -> Topology:
    members: list[dict[str, Any]] = [
        {"name": "n1", "role": "leader", "state": "running", "timeline": leader},
        {"name": "n2", "role": "replica", "state": "streaming", "timeline": replica},
    ]
    if down is not None:
        members.append({"name": "n3", "role": "replica", "state": "stopped", "timeline": down})
    return parse_topology({"members": members})


def hook(*answers: Topology) -> Any:
    left = list(answers)
    return SimpleNamespace(patroni=SimpleNamespace(topology=lambda: left.pop(0)))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "SETTLES_SECONDS", 0.5)
    wait = preflight.wait_until
    monkeypatch.setattr(preflight, "wait_until", lambda look, **limits: wait(look, **limits | {"every_seconds": 0.01}))


def test_a_leader_that_has_not_reported_its_new_timeline_is_waited_for() -> None:
    found = _settled(hook(topology(3, 4), topology(4, 4)), topology(3, 4))
    assert check_standby(found, "n2").timeline == 4


def test_where_nothing_differs_nobody_is_asked_again() -> None:
    assert _settled(hook(), topology(4, 4)).leader.timeline == 4
    assert _settled(hook(), topology(4, 4, down=3)).leader.timeline == 4


def test_a_standby_that_stays_behind_is_shown_as_it_is() -> None:
    found = _settled(SimpleNamespace(patroni=SimpleNamespace(topology=lambda: topology(4, 3))), topology(4, 3))  # type: ignore[arg-type]
    assert found.member("n2").timeline == 3
