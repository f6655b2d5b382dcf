"""What to look at when a new major version of PostgreSQL comes.

Raise NEWEST_SUPPORTED_MAJOR in recovery/versions.py, the one place; these tests then say what is missing.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab.versions import BINARIES

from bluegreen.exceptions import RefusedError
from bluegreen.recovery import versions
from bluegreen.recovery.versions import NEWEST_SUPPORTED_MAJOR, ServerVersion

# The newest version of which each question below was answered from its release notes and documentation.
LOOKED_AT = 18
QUESTIONS = """
recovery/versions.py   each property: is it still so? WAL directory, waldump's name, signal files, whether a missing
                       target is reported, archive_library, rights and behaviour of pg_rewind
recovery/standalone.py recovery parameters: new ones, other defaults, other places (runtime-config-wal.html)
recovery/history.py    the lines of a timeline history: "after transaction" (timeline.c, xlogrecovery.c)
recovery/wal.py        names of WAL files, pg_waldump's line of a COMMIT, how an LSN is printed
hooks/node.py          the lines of pg_controldata that are read; data checksums that may be switched online
include/sql            functions, views and columns: each file names its page; what may be granted
recovery_min_apply_delay: is it lifted by a reload; what does Patroni do to a paused replay
lab/versions.py        binaries, so that `make test-versions` runs it
docs/versions.md       a line in the table
"""
# 15 is the lab's default; the registries have no full binaries of the others
WITHOUT_BINARIES = {"9.6", "10", "12", "15"}
SUPPORTED = ["9.6", *map(str, range(10, NEWEST_SUPPORTED_MAJOR + 1))]


def test_the_newest_version_was_looked_at() -> None:
    assert NEWEST_SUPPORTED_MAJOR == LOOKED_AT, f"PostgreSQL {NEWEST_SUPPORTED_MAJOR}: look at{QUESTIONS}"


def test_the_next_version_is_refused_and_the_refusal_says_where_to_look() -> None:
    with pytest.raises(RefusedError, match=r"recovery/versions\.py"):
        ServerVersion((NEWEST_SUPPORTED_MAJOR + 1) * 10000)


def test_every_fact_about_versions_is_in_one_file() -> None:
    """Nobody else compares version numbers: not the operators, not the hooks, not the other pure rooms."""
    plugin = Path(versions.__file__).parents[1]
    comparison = re.compile(r"(?:version\w*|num|major)\b[^\n]*(?:<|>|<=|>=)\s*\d{2,6}\b|\b\d{5,6}\s*<=?\s*\w*version")
    allowed = {"recovery/versions.py", "statements.py"}
    found = [
        f"{path.relative_to(plugin)}: {line.strip()}"
        for path in sorted(plugin.rglob("*.py"))
        if str(path.relative_to(plugin)) not in allowed
        for line in path.read_text().splitlines()
        if comparison.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("major", SUPPORTED)
def test_every_version_is_in_the_table_of_the_docs(major: str, project_root: Path) -> None:
    table = (project_root / "docs" / "versions.md").read_text()
    firsts = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")}
    assert major in firsts, f"docs/versions.md has no line for PostgreSQL {major}"


def test_every_version_that_the_registries_have_is_really_run() -> None:
    assert set(BINARIES) == set(SUPPORTED) - WITHOUT_BINARIES
