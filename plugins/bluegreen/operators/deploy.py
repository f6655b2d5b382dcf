"""Run a deployment on the primary, and the checks that say whether it worked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlparse
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from sqlparse.lexer import tokenize
from sqlparse.tokens import Comment

from bluegreen.checkpoint import Phase, check_label
from bluegreen.clusters import PROJECT_ROOT, Cluster, Deployment, deployment_sql_path
from bluegreen.exceptions import FailedForNowError, RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.postgres import MemberSql, cluster_connection
from bluegreen.hooks.proof import look_at_held
from bluegreen.operators.base import BEGUN_KEY, BluegreenOperator, checkpoints_of_run, owner_of, paused_dags

if TYPE_CHECKING:
    from airflow.sdk import Context

DEPLOYMENT_HOURS = 12
# longer than any run takes
BEGUN_KEPT = timedelta(days=30)
# enough to tell what a statement does to a transaction
WORDS = 8
DECISIONS = ("auto", "ask")
CHILDREN = ("checkpoint", "resume", "rollback")
# of the worker's environment; the last begins what the official image is told of its first user
HIDDEN = ("AIRFLOW_", "PG", "_AIRFLOW_")


class PlanDeploymentOperator(BluegreenOperator):
    """Check what is to be deployed, before anything is held.

    Returns ``deployment`` (its name, kind and number of checks) and ``decision``.

    Example::

        plan = PlanDeploymentOperator(task_id="plan", cluster="orders", deployment="release", decision="auto")

    :param deployment: a name from the registry, or empty for an ad hoc one (templated).
    :param command: ad hoc shell command (templated).
    :param sql: ad hoc statements, or a file below ``include/`` (templated).
    :param checks: ad hoc checks (templated).
    :param decision: ``auto`` or ``ask`` (templated).
    :param checkpoint_label: the checkpoint's label (templated).
    :raises RefusedError: when it is not allowed, or not whole, or a DAG that it would trigger is paused.
    """

    template_fields: Sequence[str] = (
        *BluegreenOperator.template_fields,
        "deployment",
        "command",
        "sql",
        "checks",
        "decision",
        "checkpoint_label",
    )

    def __init__(
        self,
        *,
        deployment: Any = None,
        command: Any = None,
        sql: Any = None,
        checks: Any = None,
        decision: Any = "auto",
        checkpoint_label: Any = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deployment = deployment
        self.command = command
        self.sql = sql
        self.checks = checks
        self.decision = decision
        self.checkpoint_label = checkpoint_label

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Find the deployment and read its SQL once, so that a missing file or a wrong line is known now."""
        check_label(self.checkpoint_label or "")
        if self.decision not in DECISIONS:
            raise RefusedError(f"found {str(self.decision)[:40]!r} as decision; expected auto or ask")
        found = find_deployment(hook.cluster, self.deployment, self.command, self.sql, self.checks)
        if found.sql is not None:
            split_sql(read_sql(found.sql))
        if paused := paused_dags(context, CHILDREN):
            raise RefusedError(
                f"found {', '.join(paused)} paused in Airflow, so that a run of it would never start; expected the "
                "DAGs that a deployment triggers to be unpaused. Unpause them and run this DAG again"
            )
        kind = "sql" if found.sql is not None else "command"
        name = self.deployment or "ad hoc"
        return {"deployment": {"name": name, "kind": kind, "checks": len(found.checks)}, "decision": self.decision}


class RunDeploymentOperator(PlanDeploymentOperator):
    """Run the deployment on the primary, once: half a migration must not run twice.

    That it begins is kept in Airflow's task state store, which outlives a try: where Airflow starts the task again, as
    LocalExecutor does after its scheduler has died, the second pass refuses. A person who clears the task begins anew.
    The XCom ``begun`` tells :class:`DecideOperator` of it, as soon as a pass starts: what failed before any pass under
    the same checkpoint had begun has changed nothing.

    SQL runs statement by statement, each in a transaction of its own unless the file begins one; what a statement
    returns is received whole and thrown away, so one that returns many rows belongs into a command. A command runs
    on the worker and finds the primary in ``PGHOST``, ``PGPORT``, ``PGUSER``, ``PGDATABASE`` and ``PGPASSFILE``.

    Example::

        deploy = RunDeploymentOperator(task_id="deploy", cluster="orders", deployment="release")

    :raises RefusedError: when no checkpoint of this run is held, or an earlier pass had begun.
    :raises FailedForNowError: when it failed.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("retries", 0)
        kwargs.setdefault("execution_timeout", timedelta(hours=DEPLOYMENT_HOURS))
        super().__init__(**kwargs)
        self._subprocess: SubprocessHook | None = None
        self._sql: MemberSql | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Say whether an earlier pass had begun, whose XComs Airflow has removed; then as any other."""
        kept, taken = context["task_state_store"].get(BEGUN_KEY), checkpoints_of_run(context)
        under = kept.get("checkpoint") if isinstance(kept, dict) else None
        had_begun = kept is not None and (not taken or under is None or under in taken)
        context["ti"].xcom_push(key=BEGUN_KEY, value=had_begun)
        return super().execute(context)

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Prove the hold once more, then deploy."""
        survey = hook.survey(patroni_must_answer=True)
        checkpoint = survey.known_checkpoint()
        if checkpoint is None:
            raise RefusedError(f"{hook.cluster.name} holds no checkpoint; nothing is deployed without one")
        taken = checkpoints_of_run(context)
        if taken and checkpoint.id not in taken:
            raise RefusedError(
                f"{hook.cluster.name} holds checkpoint {checkpoint.id}; expected {', '.join(sorted(taken))}, which "
                "this run took. Nothing is deployed under another one: run the DAG again"
            )
        if checkpoint.phase is not Phase.HELD:
            raise RefusedError(
                f"checkpoint {checkpoint.id} is {checkpoint.phase.value!r}; expected it held, so that there is a way "
                "back. Nothing is deployed: run the DAG again when that has ended"
            )
        hook.refuse_foreign_lock(owner_of(context, "deploy"), survey.states)
        look_at_held(hook, checkpoint)
        found = find_deployment(hook.cluster, self.deployment, self.command, self.sql, self.checks)
        leader = hook.patroni.topology().leader
        if found.sql is not None:
            statements = split_sql(read_sql(found.sql))
            connection = cluster_connection(hook.cluster)
            with MemberSql(connection, leader.name, leader.host, leader.port, statement_timeout_ms=0) as sql:
                if sql.row("identity")["in_recovery"] is not False:
                    raise FailedForNowError(f"{sql.where} leads, and takes no writes; nothing was deployed")
                self._begin(context, checkpoint.id)
                self._sql = sql
                for number, statement in enumerate(statements, 1):
                    sql.run(statement, doing=f"statement {number} of {len(statements)} of the deployment")
                sql.require_idle("the deployment")
            return {"statements": len(statements)}
        self._begin(context, checkpoint.id)
        self._run_command(hook.cluster, str(found.command), leader.host, leader.port)
        return {"statements": 0}

    def _begin(self, context: Context, checkpoint: str) -> None:
        """Keep that it begins now, where a later pass finds it; whatever happens from here on may be half of it."""
        ti, store = context["ti"], context["task_state_store"]
        # Airflow raises it when a person clears the task, and not when it starts the task again by itself
        now: dict[str, Any] = {"max_tries": ti.max_tries, "checkpoint": checkpoint}
        before = store.get(BEGUN_KEY)
        if before != now:
            store.set(BEGUN_KEY, now, retention=BEGUN_KEPT)
            if store.get(BEGUN_KEY) != now:
                raise FailedForNowError("that the deployment begins could not be kept in Airflow; nothing was deployed")
        ti.xcom_push(key=BEGUN_KEY, value=True)
        if before == now:
            raise RefusedError(
                "an earlier pass of this task had begun the deployment and was cut off, so how far it came is not "
                "known; it does not run a second time"
            )

    def _run_command(self, cluster: Cluster, command: str, host: str, port: int) -> None:
        connection = cluster_connection(cluster)
        with tempfile.TemporaryDirectory(prefix="bluegreen-") as folder:
            passfile = Path(folder) / "pgpass"
            passfile.touch(mode=0o600)
            password = (connection.password or "").replace("\\", "\\\\").replace(":", "\\:")
            passfile.write_text(f"{host}:{port}:*:*:{password}\n")
            environment = command_environment(os.environ) | {
                "PGHOST": host,
                "PGPORT": str(port),
                "PGUSER": connection.login or "",
                "PGDATABASE": connection.schema or "",
                "PGPASSFILE": str(passfile),
            }
            for name in ("sslmode", "sslrootcert", "sslcert", "sslkey"):
                if connection.extra_dejson.get(name):
                    environment["PG" + name.upper()] = str(connection.extra_dejson[name])
            self._subprocess = SubprocessHook()
            result = self._subprocess.run_command(["bash", "-c", command], env=environment)
        if result.exit_code:
            raise FailedForNowError(
                f"the deployment's command ended with status {result.exit_code}; its last line was: "
                f"{str(result.output)[:300]}"
            )

    def on_kill(self) -> None:
        """End the command, or the statement, when the task is ended."""
        if self._sql is not None:
            self._sql.cancel()
        if self._subprocess is not None:
            self._subprocess.send_sigterm()


class RunChecksOperator(PlanDeploymentOperator):
    """Run the deployment's checks on the primary, read-only: each must give one row that begins with true.

    Example::

        checks = RunChecksOperator(task_id="checks", cluster="orders", deployment="release")

    :raises FailedForNowError: naming the first check that is not true; no row, NULL and an error are not true.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("retries", 0)
        kwargs.setdefault("execution_timeout", timedelta(hours=1))
        super().__init__(**kwargs)

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Run them all, in order, up to the first that fails."""
        found = find_deployment(hook.cluster, self.deployment, self.command, self.sql, self.checks)
        leader = hook.patroni.topology().leader
        connection = cluster_connection(hook.cluster)
        with MemberSql(
            connection, leader.name, leader.host, leader.port, statement_timeout_ms=0, read_only=True
        ) as sql:
            for number, check in enumerate(found.checks, 1):
                rows = sql.first_rows(check, doing=f"check {number}")
                values = [next(iter(row.values()), None) for row in rows]
                if values != [True]:
                    raise FailedForNowError(
                        f"check {number} of {len(found.checks)} is not true: {' '.join(check.split())[:200]!r} gave "
                        f"{str(values)[:100]}{' and perhaps more' if len(values) > 1 else ''}"
                    )
        return {"passed": len(found.checks)}


def command_environment(worker: Mapping[str, str]) -> dict[str, str]:
    """What a deployment's command gets of its worker's environment: nothing of Airflow's that may hold a secret.

    :param worker: all of it; connections, variables and settings of Airflow can stand there.
    """
    kept = ("AIRFLOW_HOME", "AIRFLOW_CTX_")
    return {name: value for name, value in worker.items() if name.startswith(kept) or not name.startswith(HIDDEN)}


def find_deployment(cluster: Cluster, name: Any, command: Any, sql: Any, checks: Any) -> Deployment:
    """Return what is to be deployed.

    :raises RefusedError: for an unknown name, an ad hoc deployment where the registry allows none, or
        one that is not whole.
    """
    if name:
        if command or sql or checks:
            raise RefusedError("found a deployment's name and command, sql or checks; expected one or the other")
        if name not in cluster.deployments:
            known = ", ".join(sorted(cluster.deployments)) or "none"
            raise RefusedError(
                f"{cluster.name} has no deployment {str(name)[:60]!r}; the registry names: {known}. Give one of those"
            )
        return cluster.deployments[name]
    if not cluster.adhoc:
        raise RefusedError(
            f"found no deployment's name, and the registry does not allow {cluster.name} command or sql from a run "
            "(adhoc: false); give the name of a deployment in the registry"
        )
    if bool(command) == bool(sql):
        raise RefusedError("found " + ("both" if command else "neither") + " command and sql; expected one of them")
    if not isinstance(checks, list) or not checks or not all(isinstance(line, str) and line.strip() for line in checks):
        raise RefusedError("found no checks; expected at least one SQL statement that returns true when all is well")
    return Deployment.model_construct(sql=sql or None, command=command or None, checks=checks)


def read_sql(text: str) -> str:
    """Return the statements: the text itself, or the file below ``include/`` that it names.

    :raises RefusedError: when the file is not there, or leads outside.
    """
    if len(text.split()) == 1 and ";" not in text:
        path = deployment_sql_path(PROJECT_ROOT / "include", text.strip())
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{text.strip()}: cannot be read ({type(error).__name__}); expected UTF-8 SQL") from None
    return text


def split_sql(text: str) -> list[str]:
    """Return the statements of an SQL text.

    :raises RefusedError: when there is none, a line is a command of psql, which the server does not know, or a
        transaction that the text begins does not end.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("\\"):
            raise RefusedError(
                f"line {number} is a command of psql ({line[:40]!r}); expected SQL only. Run psql as a `command`"
            )
    statements = [(statement, words) for statement in sqlparse.split(text) if (words := _words(statement))]
    if not statements:
        raise RefusedError("the deployment's SQL holds no statement; expected at least one")
    is_open = False
    for _, words in statements:
        first, second = (*words, "")[:2]
        if first == "BEGIN" or (first, second) == ("START", "TRANSACTION"):
            is_open = True
        elif first in ("COMMIT", "END", "ABORT") or (first == "ROLLBACK" and "TO" not in words):
            is_open = "CHAIN" in words and "NO" not in words
    if is_open:
        raise RefusedError("the deployment's SQL begins a transaction and does not end it; expected a COMMIT")
    return [statement for statement, _ in statements]


def _words(statement: str) -> list[str]:
    """Return the first words of a statement, without comments; none where it holds nothing else."""
    found = (value for kind, value in tokenize(statement) if kind not in Comment and value.strip() not in ("", ";"))
    return [value.upper() for value in islice(found, WORDS)]
