"""Which SQL file answers a question on a server of a given version.

``include/sql/<question>.sql`` is for current versions; ``include/sql/before_<N>/<question>.sql`` for servers
older than major version N. Every choice by version is made here. In the files parameters are written as psql
does, ``:'name'``, so that each file can be pasted there after ``\\set``; :func:`statement` turns them into
psycopg's ``%(name)s``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from bluegreen.exceptions import RefusedError

SQL_DIR = Path(__file__).resolve().parents[2] / "include" / "sql"
OLDEST_SERVER_VERSION_NUM = 90600

_QUESTION = re.compile(r"[a-z][a-z0-9_]*")
_FOLDER = re.compile(r"before_([1-9][0-9]*)")
_PARAMETER = re.compile(r"(?<!:):'([a-z_]+)'")


@cache
def statement(question: str, server_version_num: int) -> str:
    """Return the statement that asks ``question``, with parameters as ``%(name)s``.

    ``server_version_num`` is PostgreSQL's own number, such as 150018 or 90624. Raises :class:`RefusedError`
    for a question that has no file, and for a server older than 9.6.
    """
    text = statement_path(question, server_version_num).read_text(encoding="utf-8")
    return _PARAMETER.sub(r"%(\1)s", text)


def statement_path(question: str, server_version_num: int) -> Path:
    """Return the file for that version: of the ``before_<N>`` that apply the smallest N, else the current one."""
    if server_version_num < OLDEST_SERVER_VERSION_NUM:
        raise RefusedError(f"found a server of version number {server_version_num}, expected PostgreSQL 9.6 or newer")
    file_name = f"{question}.sql"
    current = SQL_DIR / file_name
    if not _QUESTION.fullmatch(question) or not current.is_file():
        raise RefusedError(f"there is no statement {question!r} in {SQL_DIR}")
    major = server_version_num // 10000
    older = sorted(
        (int(match[1]), folder)
        for folder in SQL_DIR.iterdir()
        if (match := _FOLDER.fullmatch(folder.name)) and (folder / file_name).is_file()
    )
    return next((folder / file_name for before, folder in older if major < before), current)
