from __future__ import annotations

from typing import Any

import pytest

from bluegreen.lag import lag_problems
from bluegreen.topology import Member, Topology


def _member(name: str, role: str = "replica") -> Member:
    return Member(name, role, "streaming" if role == "replica" else "running", "10.0.0.1", 5432, "http://x", timeline=1)


TOPOLOGY = Topology((_member("n1", "leader"), _member("n2"), _member("n3")))


def _row(name: str, flush: int | None = 0, replay: int | None = 0, state: str = "streaming") -> dict[str, Any]:
    return {"application_name": name, "state": state, "flush_lag_bytes": flush, "replay_lag_bytes": replay}


def _problems(*rows: dict[str, Any], held: str | None = None, must_replay: bool = False) -> list[str]:
    return lag_problems(TOPOLOGY, rows, limit_bytes=100, held=held, held_must_replay=must_replay)


def test_standbys_within_the_limit_are_no_problem() -> None:
    assert _problems(_row("n2", replay=100), _row("n3")) == []


def test_a_standby_beyond_the_limit_is_named_with_its_lag() -> None:
    (problem,) = _problems(_row("n2", replay=101), _row("n3"))
    assert "n2" in problem and "101" in problem and "replay_lag_bytes" in problem


def test_a_standby_without_a_row_is_a_problem() -> None:
    (problem,) = _problems(_row("n2"))
    assert "n3 does not stream" in problem and "no connection" in problem


@pytest.mark.parametrize("state", ["startup", "catchup", "backup", ""])
def test_a_standby_in_another_state_is_a_problem(state: str) -> None:
    (problem,) = _problems(_row("n2", state=state), _row("n3"))
    assert problem.startswith("n2 does not stream")


def test_an_unknown_lag_is_never_zero() -> None:
    (problem,) = _problems(_row("n2", replay=None), _row("n3"))
    assert "unknown number" in problem


def test_the_rows_of_strangers_count_for_nobody() -> None:
    assert len(_problems(_row("walreceiver"), _row("pg_basebackup"))) == 2


def test_the_held_member_is_judged_by_what_it_has_received() -> None:
    assert _problems(_row("n2", flush=100, replay=10**9), _row("n3"), held="n2") == []
    (problem,) = _problems(_row("n2", flush=101, replay=0), _row("n3"), held="n2")
    assert "flush_lag_bytes" in problem


def test_the_held_member_may_have_no_receiver() -> None:
    assert _problems(_row("n3"), held="n2") == []


def test_a_released_member_must_replay_too() -> None:
    (problem,) = _problems(_row("n2", flush=0, replay=101), _row("n3"), held="n2", must_replay=True)
    assert "replay_lag_bytes" in problem
    (problem,) = _problems(_row("n3"), held="n2", must_replay=True)
    assert "n2 does not stream" in problem


def test_a_lag_as_decimal_is_compared_as_a_number() -> None:
    from decimal import Decimal

    assert _problems({**_row("n2"), "replay_lag_bytes": Decimal("100")}, _row("n3")) == []
    assert _problems({**_row("n2"), "replay_lag_bytes": Decimal("101")}, _row("n3"))
