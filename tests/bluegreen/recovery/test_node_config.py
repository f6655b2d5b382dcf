from __future__ import annotations

import datetime
import difflib
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bluegreen.exceptions import RefusedError
from bluegreen.recovery.node_config import (
    HOLD_TAGS,
    NodeConfig,
    display_settings,
    edit,
    hold_settings,
    parse_node_config,
    without_hold,
)
from bluegreen.recovery.versions import HoldMechanism

DELAY, PAUSE = HoldMechanism.APPLY_DELAY, HoldMechanism.REPLAY_PAUSE

# Comments, order, quoting, indentation and values of YAML 1.1 as people write them.
FILE = """\
# Managed by hand; ask ada.
scope: "orders"
namespace: /service/
name: n1   # this node

restapi:
  listen: 0.0.0.0:8008
  connect_address: '10.0.0.1:8008'

postgresql:
  listen: 0.0.0.0:5432
  data_dir: /data/pg
  bin_dir: /usr/lib/postgresql/15/bin
  pg_hba:
  - host all all 0.0.0.0/0 scram-sha-256
  - local all all peer     # keep
  authentication:
    replication: {username: rep, password: 's3''cret'}
    superuser:
      username: postgres
      password: "p: #w"
  parameters:
    max_connections: 100
    logging_collector: on   # 1.1: true
    work_mem: 8MB
    start: 12:30
    mode: 0640
    since: 2026-11-24
    long: 'a very long text a very long text a very long text a very long text a very long text a very long text'

watchdog:
  mode: off
# the end
"""


def _config(text: str) -> NodeConfig:
    return parse_node_config([text], where="n1")


def _edit(text: str, settings: dict[tuple[str, ...], Any]) -> str:
    return edit(text, settings, where="n1: /etc/patroni.yml")


def _hold(text: str, dynamic: dict[str, Any] | None = None, mechanism: HoldMechanism = DELAY) -> str:
    return _edit(text, hold_settings(_config(text), dynamic or {}, mechanism))


def _release(text: str, settings: dict[tuple[str, ...], Any], original: str) -> str:
    return without_hold(text, settings, original=original, where="n1: /etc/patroni.yml")


def _changes(before: str, after: str) -> tuple[list[str], list[str]]:
    diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    return [line[1:] for line in diff if line[0] == "-"], [line[1:] for line in diff if line[0] == "+"]


# Reading


def test_what_the_project_needs_to_know_is_read_from_the_file() -> None:
    config = _config(FILE)
    assert (config.member, config.scope, config.data_dir) == ("n1", "orders", "/data/pg")
    assert (config.bin_dir, config.superuser) == ("/usr/lib/postgresql/15/bin", "postgres")
    assert not config.use_pg_rewind and not config.clones_with_waldir and config.tags == {}


def test_the_files_of_a_folder_patch_each_other_in_order() -> None:
    config = parse_node_config(
        [
            "name: n1\nscope: orders\npostgresql: {data_dir: /data/pg, parameters: {a: 1}}\ntags: {clonefrom: true}\n",
            "# only a comment\n",
            "name: n2\npostgresql: {parameters: {b: 2}}\ntags: {clonefrom: false}\n",
        ],
        where="n1",
    )
    assert config.member == "n2" and config.data_dir == "/data/pg"
    assert config.data["postgresql"]["parameters"] == {"a": 1, "b": 2} and config.tags == {"clonefrom": False}


@pytest.mark.parametrize(
    "value",
    ["null", "pg", "/", "/data", "/data/", "//", "[/data/pg]", "5", '"/data/pg\\n"', '"/data/\\x1bpg"', "''", "{}"],
)
def test_a_data_directory_that_could_be_anything_is_refused(value: str) -> None:
    with pytest.raises(RefusedError, match="data_dir"):
        _ = _config(f"name: n1\npostgresql:\n  data_dir: {value}\n").data_dir


@pytest.mark.parametrize("text", ["name: ''", "name: null", "name: [a]", "name: {}", "scope: x"])
def test_a_member_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="name"):
        _ = _config(text).member


@pytest.mark.parametrize("texts", [[], [""], ["# nothing\n", "---\n"], ["{}"]])
def test_an_empty_configuration_is_refused(texts: list[str]) -> None:
    with pytest.raises(RefusedError, match=r"no Patroni configuration|is empty"):
        parse_node_config(texts, where="n1")


def test_the_rewind_role_is_used_where_there_is_one() -> None:
    config = _config("postgresql: {authentication: {superuser: {username: su}, rewind: {username: r, password: 5}}}")
    assert config.rewind_login() == {"PGUSER": "r", "PGPASSWORD": "5"}
    config = _config("postgresql: {authentication: {superuser: {username: su, sslmode: require}}}")
    assert config.rewind_login() == {"PGUSER": "su", "PGSSLMODE": "require"}


def test_the_text_of_a_configuration_shows_no_password() -> None:
    assert "s3" not in repr(_config(FILE)) and "p: #w" not in repr(_config(FILE))


SECRET = "hunter2secret"


@pytest.mark.parametrize(
    "text",
    [
        f"password: {SECRET}\n  b: x",
        f"a: {SECRET}: b",
        f"a: 'x\nb: \"{SECRET}",
        f"a: @{SECRET}",
        f"a: %{SECRET}",
        f"a: *{SECRET}",
        f"a: !{SECRET} x",
        f"a: !!python/object/apply:os.system ['{SECRET}']",
        f"a: [{SECRET}",
        f"a: \x01{SECRET}",
        f'a: "\\{SECRET}"',
        f"? [{SECRET}]\n: x",
        f"- {SECRET}\n",
        SECRET,
        f"a: &a {{b: *a, c: {SECRET}}}",
        f"a: 2026-13-45\nb: {SECRET}",
        "[" * 500,
    ],
)
def test_a_file_that_cannot_be_parsed_is_refused_in_one_sentence_without_its_text(text: str) -> None:
    changes: dict[tuple[str, ...], Any] = {("tags", "nofailover"): True}
    for call in (
        lambda: parse_node_config([text], where="n1: /etc/patroni.yml"),
        lambda: _edit(text, changes),
        lambda: _release(text, changes, FILE),
        lambda: _release(FILE, changes, text),
    ):
        with pytest.raises(RefusedError, match=r"n1: /etc/patroni\.yml") as caught:
            call()
        message = str(caught.value)
        assert SECRET not in message and "hunter" not in message and "\n" not in message and len(message) < 300
        assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    "text",
    [
        f"password: {SECRET}\npassword: {SECRET}2\n",
        f"tags: {{}}\npostgresql: {{}}\ntags: {{x: {SECRET}}}\n",
        f"postgresql:\n  parameters: {{a: {SECRET}, a: 2}}\n",
    ],
)
def test_a_key_that_is_there_twice_is_refused_without_its_values(text: str) -> None:
    with pytest.raises(RefusedError, match="a key is there twice, line") as caught:
        _edit(text, {("tags", "nofailover"): True})
    assert SECRET not in str(caught.value)


# Where the hold goes


def test_the_hold_sets_tags_feedback_and_the_delay() -> None:
    assert hold_settings(_config(FILE), {}, DELAY) == {
        ("tags", "nofailover"): True,
        ("tags", "noloadbalance"): True,
        ("tags", "nosync"): True,
        ("tags", "clonefrom"): False,
        ("postgresql", "parameters", "hot_standby_feedback"): "off",
        ("postgresql", "recovery_conf", "recovery_min_apply_delay"): "20d",
    }


def test_before_12_there_is_no_delay_but_the_same_tags() -> None:
    dynamic = {"postgresql": {"recovery_conf": {"restore_command": "x"}}}
    assert set(hold_settings(_config(FILE), dynamic, PAUSE)) == {
        *(("tags", tag) for tag in HOLD_TAGS),
        ("postgresql", "parameters", "hot_standby_feedback"),
    }


def _recovery(settings: dict[tuple[str, ...], Any], where: str = "recovery_conf") -> dict[str, Any]:
    return {path[2]: value for path, value in settings.items() if path[:2] == ("postgresql", where)}


def test_the_dynamic_recovery_conf_is_merged_since_a_local_one_replaces_it() -> None:
    dynamic = {"postgresql": {"recovery_conf": {"restore_command": "fetch %f %p", "recovery_min_apply_delay": "1h"}}}
    assert _recovery(hold_settings(_config(FILE), dynamic, DELAY)) == {
        "restore_command": "fetch %f %p",
        "recovery_min_apply_delay": "20d",
    }


def test_a_local_recovery_conf_hides_the_dynamic_one_before_and_after() -> None:
    local = _config("name: n1\npostgresql: {recovery_conf: {restore_command: mine}}\n")
    dynamic = {"postgresql": {"recovery_conf": {"restore_command": "theirs", "archive_cleanup_command": "x"}}}
    assert _recovery(hold_settings(local, dynamic, DELAY)) == {
        "restore_command": "mine",
        "recovery_min_apply_delay": "20d",
    }


@pytest.mark.parametrize("value", ["null", "{}"])
def test_an_empty_local_recovery_conf_hides_the_dynamic_one_too(value: str) -> None:
    local = _config(f"name: n1\npostgresql:\n  recovery_conf: {value}\n")
    dynamic = {"postgresql": {"recovery_conf": {"restore_command": "theirs"}}}
    assert _recovery(hold_settings(local, dynamic, DELAY)) == {"recovery_min_apply_delay": "20d"}


@pytest.mark.parametrize("name", ["restore_command", "recovery_min_apply_delay", "Archive_Cleanup_Command"])
@pytest.mark.parametrize("is_local", [True, False])
def test_where_a_recovery_parameter_is_under_parameters_the_delay_goes_there(name: str, is_local: bool) -> None:
    local = _config(f"name: n1\npostgresql: {{parameters: {{{name if is_local else 'work_mem'}: x}}}}\n")
    dynamic = {
        "postgresql": {"parameters": {} if is_local else {name: "x"}, "recovery_conf": {"restore_command": "ignored"}}
    }
    settings = hold_settings(local, dynamic, DELAY)
    assert _recovery(settings) == {}
    assert _recovery(settings, "parameters") == {"hot_standby_feedback": "off", "recovery_min_apply_delay": "20d"}


@pytest.mark.parametrize(
    "dynamic", [{}, {"postgresql": None}, {"postgresql": {"parameters": None}}, {"postgresql": []}]
)
def test_a_dynamic_configuration_without_these_keys_is_enough(dynamic: dict[str, Any]) -> None:
    assert _recovery(hold_settings(_config("name: n1\n"), dynamic, DELAY)) == {"recovery_min_apply_delay": "20d"}


# The edit


def test_a_hold_adds_its_lines_and_touches_no_other() -> None:
    removed, added = _changes(FILE, _hold(FILE, {"postgresql": {"recovery_conf": {"restore_command": "fetch %f"}}}))
    assert removed == []
    assert sorted(line.strip() for line in added if line.strip()) == sorted(
        [
            'hot_standby_feedback: "off"',
            "recovery_conf:",
            'restore_command: "fetch %f"',
            'recovery_min_apply_delay: "20d"',
            "tags:",
            "nofailover: true",
            "noloadbalance: true",
            "nosync: true",
            "clonefrom: false",
        ]
    )


@pytest.mark.parametrize("start", ["---\n", "# a comment\n\n---\n", "--- # a comment\n", "---\n# a comment\n\n"])
def test_the_start_of_a_document_stays(start: str) -> None:
    text = start + "name: n1\n"
    assert _edit(text, {("tags", "nosync"): True}) == text + "tags:\n  nosync: true\n"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:\n    data_dir: /d/p\n    pg_hba:\n    - a\n    - b\n    parameters:\n        a: 1\n",
        "postgresql:\n    pg_hba:\n        - a\n        - b\n    parameters:\n        a: 1\n",
        "postgresql:\n  pg_hba:\n    - a\n    - b\n  parameters:\n    a: 1\n",
        "postgresql:\n  pg_hba:\n  - a\n  - b\n  parameters:\n    a: 1\n",
        "postgresql: {pg_hba: [a, b], parameters: {a: 1}}\n",
    ],
)
def test_the_indentation_of_the_file_stays(text: str) -> None:
    removed, added = _changes(text, _edit(text, {("tags", "nosync"): True}))
    assert removed == [] and [line.strip() for line in added] == ["tags:", "nosync: true"]


def test_tags_that_are_there_already_are_changed_in_their_place() -> None:
    text = "name: n1\ntags:\n  nofailover: true  # a small machine\n  clonefrom: true\n  datacenter: 'west'\n"
    removed, added = _changes(text, _hold(text))
    assert removed == ["  clonefrom: true"]
    assert added[0] == "  clonefrom: false"
    assert "nofailover" not in "".join(added)


VALUES_OF_1_1 = [
    ("on", True),
    ("no", False),
    ("Yes", True),
    ("off", False),
    ("12:30", 750),
    ("0640", 416),
    ("2026-11-24", datetime.date(2026, 11, 24)),
    ("2026-11-24 14:00:00", datetime.datetime(2026, 11, 24, 14)),
    ("1_000", 1000),
    ("0b11", 3),
    ("1e3", "1e3"),
    ("0o14", "0o14"),
    ("'on'", "on"),
    ('"12:30"', "12:30"),
    (".inf", float("inf")),
]


@pytest.mark.parametrize(("written", "meant"), VALUES_OF_1_1)
def test_values_that_yaml_1_1_reads_its_own_way_stay_as_they_are_written(written: str, meant: object) -> None:
    text = f"name: n1\npostgresql:\n  parameters:\n    theirs: {written}\n"
    assert yaml.safe_load(text)["postgresql"]["parameters"]["theirs"] == meant
    after = _hold(text)
    assert yaml.safe_load(after)["postgresql"]["parameters"]["theirs"] == meant
    assert f"    theirs: {written}\n" in after


@pytest.mark.parametrize(
    "value", ["off", "no", "12:30", "2026-11-24", "747", "0/40E0458", "", "null", "~", "1e3", "é'\""]
)
def test_a_text_that_is_written_is_read_back_as_text_by_patroni(value: str) -> None:
    after = _edit("name: n1\n", display_settings({"label": value}))
    assert yaml.safe_load(after) == {"name": "n1", "tags": {"bluegreen_label": value}}


def test_an_edit_that_would_show_elsewhere_through_an_anchor_is_refused() -> None:
    text = "common: &p {a: 1}\npostgresql:\n  parameters: *p\nother: *p\n"
    with pytest.raises(RefusedError, match="other than the hold's"):
        _hold(text)


def test_anchors_that_the_edit_does_not_meet_stay() -> None:
    text = "x: &p {a: 1}\ny: *p\nname: n1\n"
    after = _hold(text)
    assert after.startswith(text)


def test_an_edit_into_something_that_is_no_mapping_is_refused() -> None:
    for text in ("tags: nofailover\n", "tags: [a]\n", "postgresql: x\n", "postgresql: {parameters: 5}\n"):
        with pytest.raises(RefusedError):
            _hold("name: n1\n" + text)


def test_an_empty_section_is_filled() -> None:
    assert yaml.safe_load(_hold("name: n1\ntags:\npostgresql:\n"))["tags"]["nofailover"] is True


def test_in_a_folder_the_holds_file_holds_its_keys_only() -> None:
    settings = hold_settings(_config(FILE), {}, DELAY) | display_settings({"xid": "747"})
    text = _edit("", settings)
    merged = parse_node_config([FILE, text], where="n1")
    assert merged.tags == {**HOLD_TAGS, "bluegreen_xid": "747"}
    assert merged.data["postgresql"]["recovery_conf"] == {"recovery_min_apply_delay": "20d"}
    assert merged.data["postgresql"]["parameters"]["max_connections"] == 100
    assert set(yaml.safe_load(text)) == {"tags", "postgresql"}


def test_the_same_edit_twice_gives_the_same_text() -> None:
    settings = hold_settings(_config(FILE), {}, DELAY)
    assert _edit(_edit(FILE, settings), settings) == _edit(FILE, settings)


# Letting go


def test_when_somebody_edited_meanwhile_only_the_holds_keys_go() -> None:
    settings = hold_settings(_config(FILE), {"postgresql": {"recovery_conf": {"restore_command": "x"}}}, DELAY)
    held = _edit(FILE, settings | display_settings({"id": "bg_1", "xid": "747"}))
    edited = held.replace("max_connections: 100", "max_connections: 200").replace("# the end", "# the new end")
    released = _release(edited, settings, FILE)
    removed, added = _changes(FILE, released)
    assert removed == ["    max_connections: 100", "# the end"]
    assert added == ["    max_connections: 200", "# the new end"]


def test_no_empty_recovery_conf_is_left_to_hide_the_dynamic_one() -> None:
    settings = hold_settings(_config(FILE), {}, DELAY)
    released = yaml.safe_load(_release(_edit(FILE, settings), settings, FILE))
    assert "recovery_conf" not in released["postgresql"] and "tags" not in released


def test_the_owners_own_values_come_back() -> None:
    text = (
        "name: n1\ntags: {nofailover: true, clonefrom: true}\npostgresql:\n  recovery_conf: {restore_command: mine}\n"
        "  parameters: {hot_standby_feedback: on}\n"
    )
    settings = hold_settings(_config(text), {}, DELAY)
    edited = _edit(text, settings).replace("name: n1", "name: n1\nnew: key")
    assert yaml.safe_load(_release(edited, settings, text)) == {**yaml.safe_load(text), "new": "key"}


def test_a_value_that_somebody_changed_during_the_hold_stays() -> None:
    text = "name: n1\ntags: {nofailover: false}\n"
    settings = hold_settings(_config(text), {}, DELAY)
    edited = _edit(_edit(text, settings), {("tags", "nosync"): "maybe"})
    assert yaml.safe_load(_release(edited, settings, text))["tags"] == {"nofailover": False, "nosync": "maybe"}


def test_display_tags_of_any_checkpoint_go() -> None:
    held = _edit("name: n1\ntags: {x: 1}\n", display_settings({"id": "a", "label": "b", "of_old": "c"}))
    assert yaml.safe_load(_release(held, {}, "name: n1\ntags: {x: 1}\n")) == {"name": "n1", "tags": {"x": 1}}


def test_releasing_what_is_not_held_changes_nothing() -> None:
    settings = hold_settings(_config(FILE), {}, DELAY)
    assert _release(FILE, settings, FILE) == FILE


_TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
_SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | _TEXT
    | st.dates()
    | st.sampled_from(
        ["on", "no", "12:30", "2026-11-24", "0640", "~", "a: b", "# x", "- x", "'", '"', "*x", "&x", "!x", "%", "@"]
    )
)
_KEYS = st.text(alphabet="abcxyz_", min_size=1, max_size=6)
_ANY = st.recursive(
    _SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=8
)
_PARAMETERS = st.dictionaries(
    _KEYS | st.sampled_from(["hot_standby_feedback", "recovery_min_apply_delay", "restore_command"]),
    _SCALAR,
    max_size=4,
)
_TAGS = st.dictionaries(_KEYS | st.sampled_from(sorted(HOLD_TAGS)), _SCALAR, max_size=4)
_FILES = st.fixed_dictionaries(
    {"name": st.just("n1"), "scope": _TEXT},
    optional={
        "tags": _TAGS,
        "restapi": _ANY,
        "log": _ANY,
        "postgresql": st.fixed_dictionaries(
            {},
            optional={"parameters": _PARAMETERS, "recovery_conf": _PARAMETERS, "pg_hba": st.lists(_TEXT, max_size=3)},
        ),
    },
)
_DYNAMIC = st.just({}) | st.fixed_dictionaries(
    {"postgresql": st.fixed_dictionaries({}, optional={"parameters": _PARAMETERS, "recovery_conf": _PARAMETERS})}
)


def _no_dates(value: Any) -> Any:
    """Patroni publishes dynamic configuration as JSON, which has no dates."""
    if isinstance(value, dict):
        return {key: _no_dates(part) for key, part in value.items() if _no_dates(part) is not None}
    return str(value) if isinstance(value, datetime.date) else value


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(_FILES, _DYNAMIC, st.sampled_from([DELAY, PAUSE]), st.booleans(), st.integers(1, 4))
def test_any_configuration_is_held_and_let_go_without_changing_anything_else(
    data: dict[str, Any], dynamic: dict[str, Any], mechanism: HoldMechanism, flow: bool, indent: int
) -> None:
    text = yaml.safe_dump(
        data, default_flow_style=flow, indent=2 * indent, allow_unicode=True, sort_keys=False, width=200
    )
    data = yaml.safe_load(text)
    settings = hold_settings(_config(text), _no_dates(dynamic), mechanism)
    settings = {path: value for path, value in settings.items() if value is not None}
    tags = display_settings({"id": "bg_1", "xid": "747", "label": "on"})
    held_text = _edit(text, settings | tags)
    held = yaml.safe_load(held_text)
    for path, value in (settings | tags).items():
        found = held
        for key in path:
            found = found[key]
        assert found == value and type(found) is type(value)
    assert {key: held[key] for key in data if key not in {"tags", "postgresql"}} == {
        key: data[key] for key in data if key not in {"tags", "postgresql"}
    }
    released = yaml.safe_load(_release(held_text, settings, text))
    assert _without_nulls(released, settings) == _without_nulls(data, settings)


def _without_nulls(data: Any, settings: dict[tuple[str, ...], Any]) -> Any:
    """A key of the hold that was there with no value may be gone: for Patroni that is the same."""
    result = yaml.safe_load(yaml.safe_dump(data))
    for path in settings:
        place = result
        for key in path[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, dict) and path[-1] in place and place[path[-1]] is None:
            del place[path[-1]]
    return result
