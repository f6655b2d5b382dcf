"""Who may lead after a rollback: Patroni's own rule, read from a member's tags."""

from __future__ import annotations

import pytest

from bluegreen.operators.start import kept_out_of_elections
from bluegreen.recovery.node_config import parse_node_config


@pytest.mark.parametrize(
    ("tags", "kept_out"),
    [
        ("{}", False),
        ("{nofailover: true}", True),
        ("{nofailover: false}", False),
        ("{failover_priority: 0}", True),
        ("{failover_priority: '0'}", True),
        ("{failover_priority: 2}", False),
        ("{failover_priority: often}", False),
        ("{nofailover: false, failover_priority: 0}", False),
        ("{nofailover: true, failover_priority: 2}", True),
    ],
)
def test_what_keeps_a_member_out_of_elections(tags: str, kept_out: bool) -> None:
    config = parse_node_config([f"name: n1\nscope: demo\ntags: {tags}\n"], where="n1")
    assert kept_out_of_elections(config) is kept_out
