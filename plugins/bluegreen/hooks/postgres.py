"""SQL on a named member, through the cluster's PostgreSQL connection.

Source: Airflow's postgres provider (``PostgresHook``, psycopg 3).
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import Any, Self, cast

import psycopg
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import BaseHook, Connection
from psycopg.rows import dict_row

from bluegreen.clusters import Cluster
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError, UnreachableError
from bluegreen.statements import statement

CONNECT_TIMEOUT_SECONDS = 4
STATEMENT_TIMEOUT_MS = 15_000

# What libpq says of a connection that is not let in, or that it does not trust itself.
REFUSALS = ("authentication failed", "no pg_hba.conf entry", "certificate", "does not support SSL")

Row = dict[str, Any]


def cluster_connection(cluster: Cluster) -> Connection:
    """Return the registry's PostgreSQL connection.

    :raises RefusedError: when Airflow has none of that id.
    """
    try:
        return BaseHook.get_connection(cluster.postgres_conn_id)
    except Exception as error:
        raise RefusedError(
            f"the connection {cluster.postgres_conn_id!r} cannot be used ({str(error)[:200]}); expected a "
            "postgres connection in Airflow with user, password and database"
        ) from None


class MemberSql:
    """One member's PostgreSQL.

    :param connection: the cluster's connection; its host and port are replaced.
    :param member: name, for an error's sentence.
    :param statement_timeout_ms: the longest that one statement may take; 0 is without limit.
    :param read_only: whether transactions are read-only.
    :param database: instead of the connection's.
    """

    def __init__(
        self,
        connection: Connection,
        member: str,
        host: str,
        port: int,
        *,
        statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
        read_only: bool = False,
        database: str | None = None,
    ) -> None:
        self.member = member
        self.host = host
        self.port = port
        extra = {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "bluegreen",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            # milliseconds; keepalives do not run while a question that was sent is not acknowledged
            "tcp_user_timeout": 15_000,
            "options": f"-c statement_timeout={statement_timeout_ms}"
            + (" -c default_transaction_read_only=on" if read_only else ""),
        } | connection.extra_dejson
        target = Connection(
            conn_id=connection.conn_id,
            conn_type="postgres",
            host=host,
            port=port,
            login=connection.login,
            password=connection.password,
            schema=database or connection.schema,
            extra=json.dumps(extra),
        )
        self._hook = PostgresHook(connection=target, log_sql=False)
        self._conn: psycopg.Connection[Any] | None = None
        self._version: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    @property
    def where(self) -> str:
        """Member and address, for a sentence."""
        return f"{self.member} ({self.host}:{self.port})"

    def _connect(self) -> psycopg.Connection[Any]:
        if self._conn is None or self._conn.closed:
            try:
                self._conn = self._hook.get_conn()  # type: ignore[assignment]
            except psycopg.OperationalError as error:
                text = _text(error)
                if any(word in text for word in REFUSALS):
                    raise RefusedError(
                        f"{self.where}: PostgreSQL refused the connection ({text}); expected user, password and "
                        f"TLS settings of the connection {self._hook.connection.conn_id!r} to be accepted"
                    ) from None
                raise UnreachableError(f"{self.where}: PostgreSQL does not answer ({text})") from None
            except (psycopg.Error, TypeError, ValueError) as error:
                raise RefusedError(
                    f"{self.where}: the connection {self._hook.connection.conn_id!r} cannot be used ({_text(error)})"
                ) from None
            assert self._conn is not None
            self._conn.autocommit = True
        return self._conn

    @property
    def version(self) -> int:
        """``server_version_num``, e.g. 150018."""
        if self._version is None:
            self._version = self._connect().info.server_version
        return self._version

    def rows(self, question: str, **values: object) -> list[Row]:
        """Ask one of the questions of ``include/sql`` and return its rows.

        :param values: the statement's parameters.
        :raises UnreachableError: when the server does not answer.
        :raises RefusedError: when the role may not ask.
        """
        return self.execute(statement(question, self.version), values or None, doing=question)

    def row(self, question: str, **values: object) -> Row:
        """Ask a question with exactly one row for an answer.

        :raises FailedForNowError: for none or several.
        """
        rows = self.rows(question, **values)
        if len(rows) != 1:
            raise FailedForNowError(f"{self.where}: {question} gave {len(rows)} rows, expected one")
        return rows[0]

    def execute(self, sql: str, values: Mapping[str, object] | None = None, *, doing: str) -> list[Row]:
        """Run one statement in a transaction of its own and return all its rows.

        :raises OutcomeUnknownError: when the connection was lost before the answer.
        """
        with self._cursor(doing) as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def first_rows(self, sql: str, *, doing: str, most: int = 2) -> list[Row]:
        """Run one statement of somebody else's in a transaction of its own and return its first rows.

        The rows come one at a time, and what is left of them is cancelled: a large answer does not fill the
        memory (libpq, "Retrieving Query Results in Chunks").

        :raises BluegreenError: as :meth:`execute` does.
        """
        with self._cursor(doing) as cursor, closing(cast("Generator[Row]", cursor.stream(sql))) as rows:
            return list(islice(rows, most))

    def run(self, sql: str, *, doing: str) -> None:
        """Run a text of somebody else's, and throw its rows away.

        It goes to the server as it is, by the simple query protocol, which takes several statements too. libpq
        receives all rows of each before they are thrown away: what returns many belongs into a command.

        :raises BluegreenError: as :meth:`execute` does.
        """
        with self._cursor(doing) as cursor:
            cursor.execute(sql)

    def require_idle(self, doing: str) -> None:
        """See that what was run has left no transaction open, of which nothing would be committed.

        :raises FailedForNowError: when it has.
        """
        if self._connect().info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            raise FailedForNowError(
                f"{self.where}: {doing} left a transaction open, so nothing of that was committed; expected a COMMIT"
            )

    def cancel(self) -> None:
        """Ask the server to end the statement that runs, from another thread; nothing is said where it cannot."""
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.cancel_safe(timeout=CONNECT_TIMEOUT_SECONDS)

    @contextmanager
    def _cursor(self, doing: str) -> Iterator[psycopg.Cursor[Row]]:
        conn = self._connect()
        try:
            with conn.cursor(row_factory=dict_row) as cursor:
                yield cursor
        except psycopg.errors.InsufficientPrivilege as error:
            raise RefusedError(
                f"{self.where}: the role may not do {doing} ({_text(error)}); apply include/sql/grants.sql"
            ) from None
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self.close()
            raise OutcomeUnknownError(f"{self.where}: {doing} was cut short ({_text(error)})") from None
        except psycopg.Error as error:
            raise FailedForNowError(f"{self.where}: {doing} failed ({_text(error)})") from None
        except BaseException:
            # Airflow's time limit, for one; the server would go on with what nobody waits for
            self.cancel()
            raise


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__
