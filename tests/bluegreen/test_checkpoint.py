from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluegreen.checkpoint import (
    POINT_OF_NO_RETURN,
    Checkpoint,
    Hold,
    MemberAddress,
    Owner,
    Phase,
    check_id,
    check_label,
    expires_at,
    lock_order,
    locks_suffice,
    new_id,
    newest,
    parse_journal,
    parse_owner,
)
from bluegreen.exceptions import LockedError, RefusedError
from bluegreen.recovery.versions import HoldMechanism

OWNER = Owner(
    operation="checkpoint", dag_id="bluegreen_checkpoint", run_id="manual__1", person="ada", since="2026-11-24T14:00"
)


def _checkpoint(**changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": "bg_20261124_141500_1a2b3c",
        "cluster": "orders",
        "scope": "orders-prod",
        "label": "release 42",
        "phase": Phase.HELD,
        "held": "n2",
        "leader": "n1",
        "members": {
            name: MemberAddress(host=f"10.0.0.{name[1]}", port=5432, api_url="http://x:8008/patroni", ssh_host="h")
            for name in ("n1", "n2", "n3")
        },
        "server_version_num": 150018,
        "system_identifier": "7439201938475610283",
        "taken_by": OWNER,
        "dynamic_config": {"postgresql": {"parameters": {"primary_conninfo": "password=hunter2"}}},
        "hold": Hold(
            mechanism=HoldMechanism.APPLY_DELAY,
            settings=[(("postgresql", "recovery_conf", "restore_command"), "fetch --token hunter3 %f %p")],
            original_sha256="a",
            held_sha256="b",
        ),
        "server_files": {"hba_file": "/data/hunter4/pg_hba.conf"},
        "xid": 2**32 + 747,
        "lsn": "1/40E0458",
        "restore_point_lsn": "1/40E0428",
        "timeline": 3,
        "taken_at": "2026-11-24T14:15:00+00:00",
    }
    return Checkpoint(**(values | changes))


def test_a_journal_comes_back_as_it_was_written() -> None:
    checkpoint = _checkpoint()
    assert parse_journal(checkpoint.to_journal(), where="n1") == checkpoint


def test_the_settings_of_a_hold_survive_the_journal() -> None:
    hold = _checkpoint().hold
    assert hold is not None
    settings = [(("tags", "nofailover"), True), (("postgresql", "parameters", "x"), "off"), (("tags", "n"), 3)]
    changed = _checkpoint(hold=hold.model_copy(update={"settings": settings}))
    again = parse_journal(changed.to_journal(), where="n1").hold
    assert again is not None and again.settings == settings
    assert again.settings[0][1] is True


ALLOWED = {
    ("holding", "holding"),
    ("holding", "held"),
    ("holding", "releasing"),
    ("held", "held"),
    ("held", "releasing"),
    ("held", "stopping"),
    ("releasing", "releasing"),
    ("stopping", "stopping"),
    ("stopping", "recovering"),
    ("stopping", "held"),
    ("stopping", "releasing"),
    ("recovering", "recovering"),
    ("recovering", "promoted"),
    ("recovering", "held"),
    ("recovering", "releasing"),
    ("promoted", "promoted"),
    ("promoted", "taken_over"),
    ("taken_over", "taken_over"),
}


@pytest.mark.parametrize(("before", "after"), list(product(Phase, Phase)))
def test_which_phase_may_follow_which(before: Phase, after: Phase) -> None:
    checkpoint = _checkpoint(phase=before, revision=6)
    if (before.value, after.value) in ALLOWED:
        changed = checkpoint.advanced(after, new_timeline=4)
        assert (changed.phase, changed.revision, changed.new_timeline) == (after, 7, 4)
        assert checkpoint.phase is before and checkpoint.revision == 6
    else:
        with pytest.raises(RefusedError, match=f"is '{before.value}'.*cannot become '{after.value}'"):
            checkpoint.advanced(after)


def test_there_is_no_way_back_from_the_point_of_no_return() -> None:
    assert {phase for phase in Phase if _checkpoint(phase=phase).past_no_return} == POINT_OF_NO_RETURN
    for before in POINT_OF_NO_RETURN:
        for after in set(Phase) - POINT_OF_NO_RETURN:
            with pytest.raises(RefusedError, match="bluegreen_rollback again"):
                _checkpoint(phase=before).advanced(after)


def test_the_journal_with_the_highest_revision_is_the_truth() -> None:
    journals = [_checkpoint(revision=revision) for revision in (2, 10, 9)]
    found = newest(journals)
    assert found is not None and found.revision == 10


def test_no_journal_is_no_checkpoint() -> None:
    assert newest([]) is None


def test_journals_of_different_checkpoints_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"bg_a \(held\), bg_b \(promoted\)"):
        newest([_checkpoint(id="bg_a"), _checkpoint(id="bg_b", phase=Phase.PROMOTED, revision=99)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "null",
        "[]",
        "{}",
        "garbage",
        "\x00" * 100,
        "\udcff\udcfe",
        _checkpoint().to_journal()[:-3],
        _checkpoint().to_journal().replace('"held"', '"hold"'),
        _checkpoint().to_journal().replace('"revision"', '"revision2"'),
        _checkpoint().to_journal().replace("1/40E0458", "0"),
        _checkpoint().to_journal() * 2,
        "[" * 100_000,
    ],
)
def test_a_damaged_journal_is_refused_and_never_none(text: str) -> None:
    with pytest.raises(RefusedError, match="n3: the journal cannot be read") as caught:
        parse_journal(text, where="n3")
    assert "\n" not in str(caught.value) and "hunter" not in str(caught.value)


@pytest.mark.parametrize("change", [{"held": "n9"}, {"leader": "$(id)"}, {"hosts_down": ["n9"]}])
def test_a_journal_that_names_a_stranger_is_refused(change: dict[str, Any]) -> None:
    record = json.loads(_checkpoint().to_journal())
    with pytest.raises(RefusedError, match="named, but not among the members"):
        parse_journal(json.dumps({**record, **change}), where="n1")


@given(st.text(max_size=200) | st.integers(0, 1500).map(lambda length: _checkpoint().to_journal()[:length]))
def test_any_text_is_a_journal_or_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_journal(text, where="n1")


@pytest.mark.parametrize("xid", [None, 747, 2**32 + 747])
def test_every_display_tag_is_text(xid: int | None) -> None:
    tags = _checkpoint(xid=xid, timeline=None if xid is None else 3, lsn=None if xid is None else "0/1").display_tags()
    assert set(tags) == {"id", "xid", "lsn", "timeline", "taken_at", "label"}
    assert all(type(value) is str for value in tags.values())
    assert tags["xid"] == str(xid)


def test_a_report_shows_the_record_without_what_may_hold_secrets() -> None:
    public = _checkpoint().public()
    assert "hunter" not in json.dumps(public)
    assert {"dynamic_config", "hold", "server_files"}.isdisjoint(public)
    assert public["id"] == "bg_20261124_141500_1a2b3c" and public["phase"] == "held" and public["xid"] == 2**32 + 747


def test_the_text_of_a_checkpoint_shows_no_secrets() -> None:
    checkpoint = _checkpoint()
    assert "hunter2" not in repr(checkpoint) and "hunter3" not in repr(checkpoint)


def test_a_new_id_is_one_and_the_same_run_gets_the_same() -> None:
    at = datetime(2026, 11, 24, 14, 15, tzinfo=UTC)
    assert new_id(at, "manual__1") == new_id(at, "manual__1") != new_id(at, "manual__2")
    assert check_id(new_id(at, "x" * 500)).startswith("bg_20261124_141500_")


@pytest.mark.parametrize("value", ["a", "a" * 32, "bg_1", "z_9"])
def test_ids(value: str) -> None:
    assert check_id(value) == value


@pytest.mark.parametrize("value", ["", "A", "1a", "_a", "a-b", "a b", "a" * 33, "a\n", "a'", "../x", "é", "\uff41"])
def test_what_is_no_id_is_refused(value: str) -> None:
    with pytest.raises(RefusedError, match="expected an id"):
        check_id(value)


@pytest.mark.parametrize("value", ["", "release 42", "é" * 200, "a" * 200, "'; drop table x --", "$(id)"])
def test_labels(value: str) -> None:
    assert check_label(value) == value


@pytest.mark.parametrize(
    "value", ["a" * 201, "a\nb", "a\tb", "a\x00", "a\x1b[31m", "a\u202eb", "\ud800", None, 3, ["a"]]
)
def test_what_is_no_label_is_refused(value: object) -> None:
    with pytest.raises(RefusedError, match="printable characters") as caught:
        check_label(value)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_expiry_is_counted_from_the_mark() -> None:
    assert expires_at(datetime(2026, 11, 24, 14, tzinfo=UTC), 86400) == "2026-11-25T14:00:00+00:00"


def test_a_lock_names_operation_run_person_and_time() -> None:
    assert str(parse_owner(OWNER.model_dump_json(), where="n1")) == (
        "checkpoint (run manual__1 by ada, since 2026-11-24T14:00)"
    )


@pytest.mark.parametrize("text", ["", "{}", "null", "garbage", "\udcff", OWNER.model_dump_json()[:-1]])
def test_a_lock_that_cannot_be_read_is_a_lock(text: str) -> None:
    with pytest.raises(LockedError, match="n2: found a lock file"):
        parse_owner(text, where="n2")


def test_a_run_is_the_same_by_dag_and_run_id_only() -> None:
    assert OWNER.is_same_run(OWNER.model_copy(update={"operation": "resume", "since": "later", "person": "bob"}))
    assert not OWNER.is_same_run(OWNER.model_copy(update={"run_id": "manual__2"}))
    assert not OWNER.is_same_run(OWNER.model_copy(update={"dag_id": "bluegreen_deploy"}))


@pytest.mark.parametrize(
    ("taken", "members", "down", "enough"),
    [
        ("n2", "n1 n2", "", False),
        ("n1 n2", "n1 n2", "", True),
        ("n2", "n1 n2", "n1", True),
        ("n2", "n1 n2 n3", "", False),
        ("n1 n2", "n1 n2 n3", "", True),
        ("n1 n3", "n1 n2 n3", "", False),
        ("n2", "n1 n2 n3", "n3", False),
        ("n2", "n1 n2 n3", "n1 n3", True),
        ("n2 n3", "n1 n2 n3 n4", "", False),
        ("n2 n3 n4", "n1 n2 n3 n4", "", True),
        ("n2 n3", "n1 n2 n3 n4 n5", "", False),
        ("n2 n3 n4", "n1 n2 n3 n4 n5", "", True),
        ("n1 n3 n4 n5", "n1 n2 n3 n4 n5", "", False),
        ("n2 n3", "n1 n2 n3 n4 n5", "n4 n5", True),
        ("n2 n4 n5", "n1 n2 n3 n4 n5", "n4 n5", False),
        ("n2 x y", "n1 n2 n3", "", False),
        ("", "n1 n2 n3", "", False),
        ("", "n2", "n2", False),
        ("n2", "n2", "n2", False),
    ],
)
def test_the_held_member_and_a_majority_must_be_locked(taken: str, members: str, down: str, enough: bool) -> None:
    assert locks_suffice(taken.split(), "n2", members.split(), down.split()) is enough


def test_before_a_standby_is_chosen_a_majority_is_enough_and_nothing_is_not() -> None:
    assert locks_suffice(["n1", "n3"], None, ["n1", "n2", "n3"], [])
    assert not locks_suffice([], None, [], [])


@given(
    st.integers(1, 7).flatmap(
        lambda count: st.tuples(
            st.just([f"n{number}" for number in range(count)]),
            st.sets(st.integers(0, count - 1)),
            st.sets(st.integers(0, count - 1)),
        )
    )
)
def test_two_runs_never_both_have_enough(case: tuple[list[str], set[int], set[int]]) -> None:
    members, mine, theirs = case
    one = [members[number] for number in mine]
    other = [members[number] for number in theirs - mine]
    assert not (locks_suffice(one, None, members, []) and locks_suffice(other, None, members, []))


def test_locks_are_taken_in_order_of_names_on_all_that_are_up() -> None:
    assert lock_order("n2", ["n3", "n1", "n2"], ["n1"]) == ["n2", "n3"]
    assert lock_order("n9", ["n3"], []) == ["n3", "n9"]
    assert lock_order(None, ["n3", "n1"], []) == ["n1", "n3"]


def test_a_rollback_is_refused_beside_a_member_that_joined_since() -> None:
    checkpoint = _checkpoint()
    checkpoint.require_alone(["n1", "n2", "n3"])
    checkpoint.require_alone(["n1"])
    with pytest.raises(
        RefusedError, match=r"^n4, n5 joined the cluster after checkpoint bg_2026.* expected the members"
    ):
        checkpoint.require_alone(["n5", "n1", "n2", "n4"])
    # the new cluster is in service: whoever joins it clones from it
    _checkpoint(phase=Phase.TAKEN_OVER).require_alone(["n1", "n4"])
