"""No password and no key in a log, an XCom, a rendered template, a command line, or a file that others may read."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lab.standalone import Airflow, read_environment
from tests.cluster.scene import Scene, watching


def secrets_of(scene: Scene, environment: dict[str, str]) -> dict[str, bytes]:
    """What must not be found anywhere; every value is random, so each is its own mark."""
    found = {f"password of {user}": value for user, value in scene.lab.info["users"].items()}
    found["superuser's password"] = scene.lab.info["password"]
    for name in (name for name in environment if name.startswith("AIRFLOW_CONN_")):
        connection = json.loads(environment[name])
        if "password" in connection:
            found[f"password of {name}"] = connection["password"]
        for path in (connection.get("extra", {}).get(key) for key in ("key_file", "key")):
            if path:
                # the first lines are the same in every key of a kind
                found[f"key of {name}"] = max(Path(path).read_text().splitlines()[2:-1], key=len)
    passwords = json.loads(Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).read_text())
    found |= {f"Airflow password of {user}": value for user, value in passwords.items()}
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY"):
        found[name] = environment[name]
    assert all(len(value) >= 12 for value in found.values())
    return {name: value.encode() for name, value in found.items()}


def left_by_airflow(standalone: Airflow, secrets: dict[str, bytes]) -> set[str]:
    """What is found in the logs, and in the database: XComs, rendered templates, run configurations."""
    home, leaks, searched = standalone.home, set(), 0
    for path in [*home.glob("logs/**/*.log"), *home.glob("airflow.db*"), home / "standalone.log"]:
        text = path.read_bytes()
        searched += len(text)
        leaks |= {f"{name} in {path}" for name, value in secrets.items() if value in text}
    assert searched > 1_000_000, "logs and database were not searched"
    return leaks


@contextlib.contextmanager
def watched_command_lines(secrets: dict[str, bytes], leaks: set[str]) -> Iterator[list[int]]:
    """Read every process's command line all the time; the list counts the looks."""

    def look() -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = "\0".join(process.cmdline()).encode("utf-8", "surrogateescape")
                leaks.update(f"{name} in a command line: {line[:60]!r}" for name in secrets if secrets[name] in line)

    with watching(look, 0.02) as looks:
        yield looks


def test_no_secret_is_left_anywhere(scene: Scene, standalone: Airflow, run_folder: Path) -> None:
    environment = read_environment(run_folder)
    secrets = secrets_of(scene, environment)
    leaks: set[str] = set()
    with watched_command_lines(secrets, leaks) as looks:
        scene.checkpoint()
        journals = [scene.journal_path(name) for name in scene.lab.names]
        files = [path for journal in journals for path in journal.parent.glob("*.bluegreen-*")]
        for path in files:
            leaks |= {f"{name} in {path}" for name, value in secrets.items() if value in path.read_bytes()} - (
                # the kept original is the node's own configuration, readable by its owner alone
                {f"{name} in {path}" for name in secrets} if path.name.endswith("-original") else set()
            )
            assert path.stat().st_mode & 0o077 == 0, f"others may read {path}"
        scene.deploy_badly()
        scene.rollback(rejoin="rewind")
        scene.refused("rollback", checkpoint="bg_gone", confirm=scene.lab.name, reason="a failing task logs too")
    assert looks[0] > 50, "the command lines were hardly looked at"
    assert len(files) >= 3 * 2, "journal and runbook were not looked at"

    leaks |= left_by_airflow(standalone, secrets)
    for member in scene.lab.nodes.values():
        for path in member.patroni_config.parent.rglob("*"):
            if path.is_file() and path.stat().st_mode & 0o077:
                leaks |= {f"{name} in {path}" for name, value in secrets.items() if value in path.read_bytes()}
    assert not leaks, "\n".join(sorted(leaks))


@pytest.mark.whole
def test_a_deployments_command_gets_no_secret_but_its_own(scene: Scene, standalone: Airflow, run_folder: Path) -> None:
    secrets = secrets_of(scene, read_environment(run_folder))
    leaks: set[str] = set()
    command = (
        'set -e; env; echo "passfile $PGPASSFILE"; '
        'test "$(stat -c %a "$PGPASSFILE" "${PGPASSFILE%/*}" | xargs)" = "600 700"; '
        "psql -X -v ON_ERROR_STOP=1 -c 'set role release; create table by_command as select 1 as i'; sleep 1; exit 7"
    )
    with watched_command_lines(secrets, leaks) as looks:
        run_id = scene.trigger("deploy", command=command, checks=["select true"])
        scene.airflow.wait("bluegreen_deploy", run_id, seconds=400)
    report = scene.airflow.xcom("bluegreen_deploy", run_id, "report")
    assert report["result"] == "rolled_back" and "ended with status 7" in report["message"], report
    assert looks[0] > 50, "the command lines were hardly looked at"

    log = "".join(path.read_text() for path in standalone.home.glob(f"logs/**/run_id={run_id}/task_id=deploy/*.log"))
    (passfile,) = set(re.findall(r"passfile (/\S+?/pgpass)", log))
    assert not Path(passfile).parent.exists(), f"{passfile} was left behind"
    leaks |= left_by_airflow(standalone, secrets)
    assert not leaks, "\n".join(sorted(leaks))


def test_the_watch_sees_what_is_there() -> None:
    leaks: set[str] = set()
    with watched_command_lines({"a mark": b"x7Qmarkedsecret"}, leaks):
        holder = psutil.Popen(["sh", "-c", "sleep 1; : x7Qmarkedsecret"])
        holder.wait()
    assert leaks
