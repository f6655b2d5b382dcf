from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.topology import (
    Topology,
    check_standby,
    check_streams,
    choose_standby,
    failover_candidates,
    kept_out_of_elections,
    parse_topology,
    slot_name,
)

# As Patroni 4.1.4 answers.
PATRONI_4 = {
    "members": [
        {
            "name": "n1",
            "role": "leader",
            "state": "running",
            "api_url": "http://127.0.0.11:8008/patroni",
            "host": "127.0.0.11",
            "port": 5432,
            "timeline": 1,
        },
        {
            "name": "n2",
            "role": "replica",
            "state": "streaming",
            "api_url": "http://127.0.0.12:8008/patroni",
            "host": "127.0.0.12",
            "port": 5433,
            "timeline": 1,
            "lag": 16,
            "tags": {"nofailover": True, "bluegreen_xid": "747"},
        },
    ],
    "scope": "orders",
}


def _raw(name: str, role: str = "replica", **more: Any) -> dict[str, Any]:
    state = "running" if role in {"leader", "master", "primary", "standby_leader"} else "streaming"
    return {"name": name, "role": role, "state": state, "host": "h", "port": 5432, "timeline": 3, **more}


def _topology(*members: dict[str, Any], **more: Any) -> Topology:
    return parse_topology({"members": list(members), **more})


def _refusal(topology: Topology, name: str) -> str:
    with pytest.raises(RefusedError) as caught:
        check_standby(topology, name)
    return str(caught.value)


def test_an_answer_of_patroni_4_is_read() -> None:
    topology = parse_topology(PATRONI_4)
    assert topology.leader.name == "n1"
    assert topology.scope == "orders"
    held = topology.member("n2")
    assert (held.host, held.port, held.timeline, held.lag_bytes) == ("127.0.0.12", 5433, 1, 16)
    assert held.tags["bluegreen_xid"] == "747"
    assert not topology.paused


@pytest.mark.parametrize("role", ["master", "leader", "primary"])
def test_every_name_of_the_leader_role_is_a_leader(role: str) -> None:
    topology = _topology(_raw("n1", role), _raw("n2"))
    assert topology.leader.name == "n1"
    assert [member.name for member in topology.replicas] == ["n2"]


def test_a_standby_cluster_has_no_leader_here() -> None:
    with pytest.raises(FailedForNowError, match="expected exactly one"):
        _ = _topology(_raw("n1", "standby_leader"), _raw("n2")).leader


@pytest.mark.parametrize("roles", [("replica", "replica"), ("leader", "leader"), ("leader", "master")])
def test_none_or_several_leaders_are_no_leader(roles: tuple[str, str]) -> None:
    with pytest.raises(FailedForNowError, match="expected exactly one"):
        _ = _topology(_raw("n1", roles[0]), _raw("n2", roles[1])).leader


@pytest.mark.parametrize("state", ["stopped", "starting", "crashed", "stopping", "start failed", "unknown", "RUNNING"])
def test_a_leader_that_does_not_run_is_no_leader(state: str) -> None:
    with pytest.raises(FailedForNowError, match=r"n1 \("):
        _ = _topology(_raw("n1", "leader", state=state), _raw("n2")).leader


@pytest.mark.parametrize(("value", "paused"), [(True, True), (False, False), ("true", False), (None, False)])
def test_maintenance_mode_is_read(value: object, paused: bool) -> None:
    assert _topology(_raw("n1", "leader"), pause=value).paused is paused


@pytest.mark.parametrize("key", ["timeline", "lag"])
@pytest.mark.parametrize("value", [None, "", "unknown", True, 1.5, [], "3"])
def test_a_figure_that_is_no_number_is_unknown_and_never_zero(key: str, value: object) -> None:
    member = _topology(_raw("n1", "leader", **{key: value})).members[0]
    assert (member.timeline if key == "timeline" else member.lag_bytes) is None


@pytest.mark.parametrize(
    "payload",
    [None, [], "", 1, {}, {"members": None}, {"members": []}, {"members": {}}, {"members": [None]}]
    + [{"members": [{**_raw("n1"), key: value}]} for key in ("name", "role", "state") for value in (None, "", 1, [])],
)
def test_what_patroni_never_answers_is_failed_for_now(payload: object) -> None:
    with pytest.raises(FailedForNowError):
        parse_topology(payload)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_KEYS = ("name", "role", "state", "host", "port", "api_url", "timeline", "lag", "tags")


@given(
    st.one_of(
        _JSON,
        st.fixed_dictionaries(
            {"members": st.lists(_JSON | st.dictionaries(st.sampled_from(_KEYS), _JSON), max_size=3)},
            optional={"scope": _JSON, "pause": _JSON},
        ),
        st.fixed_dictionaries(
            {
                "members": st.lists(
                    st.fixed_dictionaries(
                        {key: st.text(min_size=1, max_size=4) for key in ("name", "role", "state")},
                        optional={key: _JSON for key in _KEYS[3:]},
                    ),
                    min_size=1,
                    max_size=3,
                )
            }
        ),
    )
)
def test_garbage_is_read_or_failed_for_now_and_nothing_else(payload: object) -> None:
    try:
        topology = parse_topology(payload)
    except FailedForNowError:
        return
    for member in topology.members:
        assert member.name and member.role and member.state
        assert member.timeline is None or type(member.timeline) is int
        assert member.lag_bytes is None or type(member.lag_bytes) is int
        _ = member.may_be_elected, member.is_running
    with contextlib.suppress(FailedForNowError, RefusedError):
        choose_standby(topology)


def test_an_unknown_member_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RefusedError, match="n1, n2"):
        _topology(_raw("n1", "leader"), _raw("n2")).member("n9")


def test_the_leader_is_not_held() -> None:
    assert "n1 is the leader" in _refusal(_topology(_raw("n1", "leader"), _raw("n2")), "n1")


@pytest.mark.parametrize("state", ["stopped", "starting", "crashed", "creating replica", "in archive recovery", "x"])
def test_a_standby_that_does_not_stream_is_not_held(state: str) -> None:
    assert "expected a standby that streams" in _refusal(_topology(_raw("n1", "leader"), _raw("n2", state=state)), "n2")


@pytest.mark.parametrize("timeline", [2, 4, None])
def test_a_standby_on_another_timeline_is_not_held(timeline: int | None) -> None:
    message = _refusal(_topology(_raw("n1", "leader"), _raw("n2", timeline=timeline)), "n2")
    assert "timeline" in message and "expected the same" in message


def test_two_unknown_timelines_are_not_the_same() -> None:
    topology = _topology(_raw("n1", "leader", timeline=None), _raw("n2", timeline=None))
    assert "timeline" in _refusal(topology, "n2")


@pytest.mark.parametrize("role", ["standby_leader", "uninitialized", "demoted"])
def test_a_member_of_another_role_is_not_held(role: str) -> None:
    assert "expected a replica" in _refusal(_topology(_raw("n1", "leader"), _raw("n2", role)), "n2")


@pytest.mark.parametrize("role", ["sync_standby", "quorum_standby"])
def test_the_only_synchronous_standby_is_not_held(role: str) -> None:
    topology = _topology(_raw("n1", "leader"), _raw("n2", role), _raw("n3"))
    assert "only synchronous standby" in _refusal(topology, "n2")
    assert check_standby(topology, "n3").name == "n3"


def test_one_of_two_synchronous_standbys_may_be_held() -> None:
    topology = _topology(_raw("n1", "leader"), _raw("n2", "sync_standby"), _raw("n3", "sync_standby"))
    assert check_standby(topology, "n2").name == "n2"


def test_the_standby_with_the_least_lag_is_chosen_then_by_name() -> None:
    leader = _raw("n1", "leader")
    assert choose_standby(_topology(leader, _raw("n2", lag=5), _raw("n3", lag=4))).name == "n3"
    assert choose_standby(_topology(leader, _raw("n3", lag=4), _raw("n2", lag=4))).name == "n2"


def test_an_unknown_lag_is_the_largest() -> None:
    topology = _topology(_raw("n1", "leader"), _raw("n2", lag="unknown"), _raw("n3", lag=10**12))
    assert choose_standby(topology).name == "n3"


def test_an_asynchronous_standby_is_preferred() -> None:
    topology = _topology(
        _raw("n1", "leader"), _raw("n2", "sync_standby", lag=0), _raw("n3", "sync_standby", lag=0), _raw("n4", lag=9)
    )
    assert choose_standby(topology).name == "n4"


def test_a_standby_that_no_failover_may_choose_is_preferred() -> None:
    topology = _topology(_raw("n1", "leader"), _raw("n2", lag=0), _raw("n3", lag=9, tags={"nofailover": True}))
    assert choose_standby(topology).name == "n3"


def test_when_none_will_do_each_reason_is_given() -> None:
    topology = _topology(_raw("n1", "leader"), _raw("n2", state="stopped"), _raw("n3", timeline=1))
    with pytest.raises(RefusedError, match=r"n2 is 'stopped'.*n3 is on timeline 1"):
        choose_standby(topology)


def test_a_cluster_of_one_has_no_standby() -> None:
    with pytest.raises(RefusedError, match="no replica"):
        choose_standby(_topology(_raw("n1", "leader")))


def test_a_cluster_without_a_leader_is_not_ready_rather_than_refused() -> None:
    with pytest.raises(FailedForNowError):
        choose_standby(_topology(_raw("n1"), _raw("n2")))


@pytest.mark.parametrize(
    ("tags", "elected"),
    [
        ({}, True),
        ({"nofailover": True}, False),
        ({"nofailover": False}, True),
        ({"failover_priority": 0}, False),
        ({"failover_priority": "0"}, False),
        ({"failover_priority": 2}, True),
        ({"failover_priority": "often"}, True),
        ({"nofailover": False, "failover_priority": 0}, True),
        ({"nofailover": True, "failover_priority": 2}, False),
    ],
)
def test_tags_decide_who_may_be_elected(tags: dict[str, Any], elected: bool) -> None:
    topology = _topology(_raw("n1", "leader"), _raw("n2", tags=tags), _raw("n3"))
    assert kept_out_of_elections(tags) is not elected
    assert topology.member("n2").may_be_elected is elected
    assert [member.name for member in failover_candidates(topology, "n3")] == (["n2"] if elected else [])


def test_a_member_that_does_not_stream_is_refused_by_name() -> None:
    leader, archive = _raw("n1", "leader"), _raw("n3", state="in archive recovery", tags={"nostream": True})
    with pytest.raises(RefusedError, match="n3 is tagged nostream; expected every member to stream"):
        check_streams(_topology(leader, _raw("n2"), archive))
    check_streams(_topology(leader, _raw("n2", tags={"nostream": False})))


def test_with_two_members_nobody_is_left_for_a_failover() -> None:
    assert failover_candidates(_topology(_raw("n1", "leader"), _raw("n2")), "n2") == []


def test_a_member_that_is_named_twice_is_no_topology() -> None:
    members = PATRONI_4["members"]
    with pytest.raises(FailedForNowError, match="named a member twice"):
        parse_topology({**PATRONI_4, "members": [*members, members[0]]})


@pytest.mark.parametrize("value", [[], {}, None, 1])
def test_a_tag_of_another_kind_names_no_member(value: object) -> None:
    leader, replica = PATRONI_4["members"]
    found = parse_topology({"members": [leader, {**replica, "tags": {"replicatefrom": value}}]})
    assert found.cascading_from == ()


@pytest.mark.parametrize(
    ("member", "slot"),
    [("n1", "n1"), ("pg-db-3", "pg_db_3"), ("Node.A", "node_a"), ("a b", "au0032b"), ("x" * 70, "x" * 63)],
)
def test_a_members_slot_is_named_as_patroni_does(member: str, slot: str) -> None:
    assert slot_name(member) == slot
