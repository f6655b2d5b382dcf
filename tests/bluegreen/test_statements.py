from __future__ import annotations

import re
from pathlib import Path

import pytest

from bluegreen.exceptions import RefusedError
from bluegreen.statements import SQL_DIR, statement, statement_path

FILES = sorted(SQL_DIR.rglob("*.sql"))
QUESTIONS = sorted(path.stem for path in SQL_DIR.glob("*.sql"))
VERSIONS = [90600, 90624, 100023, 110022, 120022, 130023, 140020, 150018, 160014, 170010, 180001]


def _code(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("--"))


def _columns(path: Path) -> list[str]:
    header = "".join(line[2:] for line in path.read_text().splitlines() if line.startswith("--"))
    listed = re.search(r"Columns: (.*?)\.(?: |$)", header)
    assert listed, f"{path} does not list its columns"
    without_notes = re.sub(r"\([^)]*\)", "", listed[1])
    return [entry.split()[0] for entry in without_notes.split(",")]


@pytest.mark.parametrize(
    ("question", "version", "expected"),
    [
        ("hold_settings", 90624, "before_10/hold_settings.sql"),
        ("hold_settings", 100000, "before_12/hold_settings.sql"),
        ("hold_settings", 110022, "before_12/hold_settings.sql"),
        ("hold_settings", 120000, "before_14/hold_settings.sql"),
        ("hold_settings", 139999, "before_14/hold_settings.sql"),
        ("hold_settings", 140000, "hold_settings.sql"),
        ("hold_settings", 180001, "hold_settings.sql"),
        ("slots", 90600, "before_10/slots.sql"),
        ("slots", 120022, "before_13/slots.sql"),
        ("slots", 130000, "slots.sql"),
        ("proof", 90624, "before_10/proof.sql"),
        ("proof", 100000, "proof.sql"),
        ("settings", 90624, "settings.sql"),
        ("grants", 110022, "before_12/grants.sql"),
    ],
)
def test_the_variant_of_the_smallest_version_above_the_servers_is_chosen(
    question: str, version: int, expected: str
) -> None:
    assert statement_path(question, version) == SQL_DIR / expected


@pytest.mark.parametrize("question", ["nothing", "../clusters", "before_10/slots", "", "Slots"])
def test_a_question_without_a_file_is_refused(question: str) -> None:
    with pytest.raises(RefusedError, match="there is no statement"):
        statement(question, 150018)


def test_a_server_older_than_96_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"found a server of version number 90525, expected PostgreSQL 9\.6"):
        statement("identity", 90525)


def test_parameters_become_those_of_psycopg() -> None:
    sql = statement("proof", 150018)
    assert "%(xid)s::bigint" in sql
    assert "%(lsn)s::pg_lsn" in sql
    assert ":'" not in sql
    assert statement("takeover_write", 150018).count("%(name)s") == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_every_question_has_a_statement_on_every_version(version: int) -> None:
    for question in QUESTIONS:
        assert statement(question, version).strip().endswith(";")


def test_no_variant_is_without_a_current_file() -> None:
    for path in FILES:
        assert path.stem in QUESTIONS
        assert path.parent == SQL_DIR or re.fullmatch(r"before_\d+", path.parent.name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SQL_DIR)))
def test_every_file_says_what_it_asks_and_can_be_pasted_into_psql(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\n" + _code(path).lstrip().splitlines()[0])]
    assert text.startswith("-- ")
    assert "-- On: " in header
    assert "-- Source: https://www.postgresql.org/docs/" in header
    assert "%" not in text, "a percent sign would be read as a parameter by psycopg"
    if path.stem != "grants":
        assert text.startswith("-- Asks: ")
        assert "-- Needs: " in header
        assert _code(path).count(";") == 1, "one question per file"
    for parameter in re.findall(r"(?<!:):'([a-z_]+)'", _code(path)):
        assert f"\\set {parameter} " in header


@pytest.mark.parametrize("question", [name for name in QUESTIONS if "replay" not in name and name != "grants"])
def test_all_variants_of_a_question_answer_with_the_same_columns(question: str) -> None:
    expected = _columns(SQL_DIR / f"{question}.sql")
    for path in SQL_DIR.rglob(f"{question}.sql"):
        assert _columns(path) == expected
        for column in expected:
            assert re.search(rf"\b{column}\b", _code(path)), f"{path} does not return {column}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SQL_DIR)))
def test_the_names_of_before_10_stay_in_before_10(path: Path) -> None:
    before_10 = path.parent.name == "before_10"
    assert not re.search(r"pg_\w*wal_(?!receiver)\w*\(|\w+_lsn\(|txid_status\(" if before_10 else r"xlog", _code(path))


@pytest.mark.parametrize("path", sorted(SQL_DIR.rglob("grants.sql")), ids=lambda path: path.parent.name)
def test_the_grants_name_every_function_that_is_not_open_to_everybody(path: Path) -> None:
    text = _code(path)
    closed = {"pg_create_restore_point(text)"}
    if path.parent.name == "before_12":
        closed |= {"pg_wal_replay_pause()", "pg_wal_replay_resume()"}
    if path.parent.name == "before_10":
        closed |= {"pg_xlog_replay_pause()", "pg_xlog_replay_resume()"}
    else:
        assert "grant pg_read_all_stats, pg_read_all_settings to" in text
    assert set(re.findall(r"on function pg_catalog\.(\S+\)) to", text)) == closed
    assert "superuser" not in text.lower() and "pg_monitor" not in text
