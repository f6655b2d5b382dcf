"""PostgreSQL 9.6, 10 and 12: what their programs print and what their files take.

No registry has full binaries of them. CONTROL_10 is a published output of pg_controldata 10, CONTROL_96 one of 9.5
with the numbers of 9.6 (`wal_log_hints setting` as Patroni's issue 455 quotes it from 9.6.3). Other formats are those
of that branch's src/bin/pg_controldata, src/bin/pg_xlogdump and src/backend/access/transam/timeline.c; recovery.conf
is after https://www.postgresql.org/docs/9.6/recovery-config.html.
"""

from __future__ import annotations

import pytest

from bluegreen.exceptions import RefusedError
from bluegreen.hooks.node import DataDirectory
from bluegreen.recovery.history import branch_at_mark, contains_branch, parse_history
from bluegreen.recovery.node_config import hold_settings, parse_node_config
from bluegreen.recovery.standalone import alone_until_proven, recovery_conf, recovery_settings, with_settings
from bluegreen.recovery.versions import ServerVersion
from bluegreen.recovery.wal import commit_is_in, missing_segments
from bluegreen.statements import statement

V96, V10, V11, V12 = (ServerVersion(num) for num in (90624, 100023, 110022, 120022))
BEFORE_12 = pytest.mark.parametrize("version", [V96, V10, V11], ids=["9.6", "10", "11"])

CONTROL_96 = """\
pg_control version number:            960
Catalog version number:               201608131
Database system identifier:           7101134005590396367
Database cluster state:               shut down in recovery
pg_control last modified:             Thu 01 Sep 2016 08:17:41 PM GMT
Latest checkpoint location:           0/183CC58
Prior checkpoint location:            0/183A9C0
Latest checkpoint's REDO location:    0/183CC58
Latest checkpoint's REDO WAL file:    000000010000000000000001
Latest checkpoint's TimeLineID:       1
Latest checkpoint's PrevTimeLineID:   1
Latest checkpoint's full_page_writes: on
Latest checkpoint's NextXID:          0:1882
Minimum recovery ending location:     0/2000060
Min recovery ending loc's timeline:   1
Backup start location:                0/0
Backup end location:                  0/0
End-of-backup record required:        no
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
Database block size:                  8192
Blocks per segment of large relation: 131072
WAL block size:                       8192
Bytes per WAL segment:                16777216
Date/time type storage:               64-bit integers
Data page checksum version:           0
"""
CONTROL_10 = """\
pg_control version number:            1002
Catalog version number:               201707211
Database system identifier:           6320137769675861859
Database cluster state:               in production
Latest checkpoint location:           0/19000728
Prior checkpoint location:            0/19000648
Latest checkpoint's REDO location:    0/190006F0
Latest checkpoint's REDO WAL file:    000000010000000000000019
Latest checkpoint's TimeLineID:       1
Latest checkpoint's NextXID:          0:703
wal_level setting:                    replica
wal_log_hints setting:                off
Bytes per WAL segment:                16777216
Data page checksum version:           1
Mock authentication nonce:            48fe6622c4dd3c1d0d45eba9fa7e5b4ac56ac8f25b14edc20c9606450a1c6fd0
"""


@pytest.mark.parametrize(
    ("text", "identifier", "state", "redo", "hints", "checksums"),
    [
        (CONTROL_96, "7101134005590396367", "shut down in recovery", "0/183CC58", "on", "0"),
        (CONTROL_10, "6320137769675861859", "in production", "0/190006F0", "off", "1"),
    ],
    ids=["9.6", "10"],
)
def test_the_control_data_is_read(
    text: str, identifier: str, state: str, redo: str, hints: str, checksums: str
) -> None:
    found = DataDirectory({"controldata": text})
    assert found.control("Database system identifier") == identifier
    assert found.control("Database cluster state") == state
    assert found.control("Latest checkpoint's REDO location") == redo
    assert found.control("Bytes per WAL segment") == "16777216"
    assert found.control("wal_log_hints setting") == hints
    assert found.control("Data page checksum version") == checksums


def test_the_files_in_pg_xlog_are_named_as_those_in_pg_wal() -> None:
    names = ["000000010000000000000001", "000000010000000000000002", "archive_status", "00000002.history"]
    segment = int(DataDirectory({"controldata": CONTROL_96}).control("Bytes per WAL segment"))
    assert missing_segments(names, "0/183CC58", "0/2000060", segment) == []
    assert missing_segments(names, "0/183CC58", "0/3000060", segment) == ["0000000000000003"]


def test_the_commit_is_found_in_what_pg_xlogdump_prints() -> None:
    printed = (
        "rmgr: Transaction len (rec/tot):     20/    46, tx:       1884, lsn: 0/02000028, prev 0/0183CCC8, "
        "desc: COMMIT 2016-09-01 20:18:41.123456 GMT\n"
        "pg_xlogdump: FATAL:  error in WAL record at 0/2000028: invalid record length at 0/2000058: wanted 24, got 0\n"
    )
    assert commit_is_in(printed, 1884)
    assert commit_is_in(printed, (3 << 32) + 1884)
    assert not commit_is_in(printed, 1885)


def test_a_history_as_96_writes_it_proves_the_branch() -> None:
    # An empty line after the parent's own lines, as writeTimeLineHistory puts it.
    text = "1\t0/1D000098\tno recovery target specified\n\n2\t0/2000058\tafter transaction 1884\n"
    timeline, branch = branch_at_mark({"00000003.history": text}, xid=(1 << 32) + 1884, parent=2) or (0, None)
    assert timeline == 3 and branch is not None and branch.lsn == "0/2000058"
    assert contains_branch(text, branch) and len(parse_history(text)) == 2


def test_before_13_the_end_of_the_wal_is_no_proof() -> None:
    """A target that is not in the WAL is not reported: the server promotes, and the history says so."""
    assert not any(version.reports_missing_target for version in (V96, V10, V11, V12))
    text = "1\t0/2000140\tno recovery target specified\n"
    assert branch_at_mark({"00000002.history": text}, xid=1884, parent=1) is None


@BEFORE_12
def test_recovery_conf_has_what_that_version_knows(version: ServerVersion) -> None:
    settings = recovery_settings(
        xid=(1 << 32) + 1884, timeline=3, version=version, restore_command="cp '/wal archive'/%f %p"
    )
    # recovery-target-settings.html, archive-recovery-settings.html and standby-settings.html of 9.6 and 10
    assert recovery_conf(settings) == (
        "recovery_target_xid = '1884'\n"
        "recovery_target_inclusive = 'true'\n"
        "recovery_target_action = 'promote'\n"
        "recovery_target_timeline = '3'\n"
        "restore_command = '(eval ''cp ''\"''\"''/wal archive''\"''\"''/%f %p'') || exit 1'\n"
        "recovery_min_apply_delay = '0'\n"
        "standby_mode = 'off'\n"
    )


@BEFORE_12
def test_before_12_the_rest_stands_in_postgresql_auto_conf(version: ServerVersion) -> None:
    assert with_settings("# Do not edit this file manually!\n", alone_until_proven(version)) == (
        "# Do not edit this file manually!\narchive_command = ''\nrestart_after_crash = 'off'\n"
    )


def test_12_takes_the_settings_in_postgresql_auto_conf() -> None:
    text = with_settings("", recovery_settings(xid=1884, timeline=2, version=V12, restore_command=""))
    lines = text.splitlines()
    assert "recovery_target_xid = '1884'" in lines and "recovery_target_timeline = '2'" in lines
    # each is a parameter of 12 (release notes E.1.2); standby_mode and trigger_file are none any more
    assert not any(line.startswith(("standby_mode", "trigger_file", "archive_library")) for line in lines)


NODE = parse_node_config(
    ["name: n2\nscope: orders\npostgresql:\n  data_dir: /u01/data/pgdata\n  parameters: {}\n"], where="n2"
)


@BEFORE_12
def test_before_12_the_hold_leaves_recovery_conf_alone(version: ServerVersion) -> None:
    """A changed parameter of recovery.conf would make Patroni restart the standby, and a restart ends a pause."""
    dynamic = {"postgresql": {"recovery_conf": {"restore_command": "cp /archive/%f %p"}}}
    paths = set(hold_settings(NODE, dynamic, version.hold_mechanism))
    assert not any(path[:2] == ("postgresql", "recovery_conf") for path in paths)
    assert ("postgresql", "parameters", "recovery_min_apply_delay") not in paths
    assert ("tags", "nofailover") in paths and ("postgresql", "parameters", "hot_standby_feedback") in paths


def test_12_is_held_by_the_delay_beside_the_restore_command() -> None:
    dynamic = {"postgresql": {"recovery_conf": {"restore_command": "cp /archive/%f %p"}}}
    settings = hold_settings(NODE, dynamic, V12.hold_mechanism)
    assert settings["postgresql", "recovery_conf", "recovery_min_apply_delay"] == "20d"
    assert settings["postgresql", "recovery_conf", "restore_command"] == "cp /archive/%f %p"


@pytest.mark.parametrize(
    ("question", "num", "functions"),
    [
        ("pause_replay", 90624, ["pg_xlog_replay_pause()"]),
        ("resume_replay", 90624, ["pg_xlog_replay_resume()"]),
        ("pause_replay", 100023, ["pg_wal_replay_pause()"]),
        ("resume_replay", 110022, ["pg_wal_replay_resume()"]),
        ("hold_settings", 90624, ["pg_is_xlog_replay_paused()"]),
        ("hold_settings", 120022, ["pg_is_wal_replay_paused()", "recovery_min_apply_delay"]),
        ("mark", 90624, ["pg_xlogfile_name(", "pg_current_xlog_insert_location()", "txid_current()"]),
        ("insert_lsn", 90624, ["pg_current_xlog_insert_location()"]),
        ("proof", 90624, ["txid_visible_in_snapshot(", "pg_last_xlog_receive_location()"]),
        ("proof", 100023, ["txid_status(", "pg_last_wal_receive_lsn()"]),
        ("replication", 90624, ["r.flush_location", "pg_xlog_location_diff("]),
    ],
)
def test_each_version_is_asked_in_its_own_words(question: str, num: int, functions: list[str]) -> None:
    text = statement(question, num)
    assert [function for function in functions if function not in text] == []
    assert "pg_get_wal_replay_pause_state" not in text and "pg_current_xact_id" not in text


@BEFORE_12
def test_the_pause_may_be_granted(version: ServerVersion) -> None:
    """pg_proc's default privileges: superuser only, and GRANT EXECUTE from 9.6 on (functions-admin.html)."""
    text = statement("grants", version.num)
    prefix = "xlog" if version is V96 else "wal"
    for verb in ("pause", "resume"):
        assert f"grant execute on function pg_catalog.pg_{prefix}_replay_{verb}() to" in text


def test_what_rewind_needs() -> None:
    assert [version.rewind_needs_superuser for version in (V96, V10, V11, V12)] == [True, True, False, False]
    assert not any(version.rewind_recovers_first for version in (V96, V10, V11, V12))


def test_95_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"expected 9\.6 to 18"):
        ServerVersion(90525)
