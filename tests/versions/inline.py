"""The DAGs in one process, without a running Airflow: the same files and operators, for many labs in a row.

`Inline` is the client that a scene is played with; run as a program this file is the process behind it, which reads
one job per line: DAG, conf, and where the result goes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

RESULT_SECONDS = 900


class Inline:
    """What tests/cluster/scene.py needs of Airflow; a run has ended when `trigger` returns.

    :param environment: the lab's airflow.env.
    :param home: a folder for Airflow's database and for the log.
    """

    def __init__(self, environment: dict[str, str], home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "inline.log"
        self.results: dict[str, dict[str, Any]] = {}
        self.home = home
        plugins = environment["AIRFLOW__CORE__PLUGINS_FOLDER"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                env={**environment, "AIRFLOW_HOME": str(home), "PYTHONPATH": plugins},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def trigger(self, dag_id: str, conf: dict[str, Any], run_id: str | None = None) -> str:
        """Run a DAG to its end."""
        run_id = run_id or uuid.uuid4().hex[:10]
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            result = Path(folder) / "result"
            assert self.process.stdin
            self.process.stdin.write(json.dumps({"dag": dag_id, "conf": conf, "result": str(result)}) + "\n")
            self.process.stdin.flush()
            _wait_for(result, self.process, self.log)
            self.results[run_id] = json.loads(result.read_text())
        return run_id

    def wait(self, dag_id: str, run_id: str, *, seconds: float = 0) -> str:
        """The state in which a run ended."""
        return str(self.results[run_id]["state"])

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """What a task of a run returned; only reports are kept."""
        return self.results[run_id]["report"] if task_id == "report" else None

    def summary(self, dag_id: str, run_id: str) -> str:
        """Each task's state in one line."""
        return f"{self.results[run_id]['tasks']}; see {self.log}"

    def run(self, dag_id: str, conf: dict[str, Any], *, seconds: float = 0) -> tuple[str, dict[str, Any]]:
        """Run a DAG to its end; return state and report."""
        run_id = self.trigger(dag_id, conf)
        return self.wait(dag_id, run_id), self.xcom(dag_id, run_id, "report") or {}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def _wait_for(result: Path, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + RESULT_SECONDS
    while not result.exists():
        assert process.poll() is None, f"the process that runs the DAGs ended; see {log}"
        assert time.monotonic() < deadline, f"a DAG did not end within {RESULT_SECONDS} s; see {log}"
        time.sleep(0.1)


def main() -> None:
    """Run jobs until the input ends."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils.db import initdb

    initdb()
    for line in sys.stdin:
        job = json.loads(line)
        # read anew: a DAG keeps the params of its last test
        bag = DagBag(bundle_name="dags-folder")
        assert not bag.import_errors, bag.import_errors
        run = bag.dags[job["dag"]].test(run_conf=job["conf"])
        tasks = run.get_task_instances()
        report = next(task for task in tasks if task.task_id == "report").xcom_pull(task_ids="report")
        states = ", ".join(f"{task.task_id}={task.state}" for task in tasks)
        draft = Path(job["result"] + ".new")
        draft.write_text(json.dumps({"state": str(run.state), "report": report, "tasks": states}, default=str))
        draft.rename(job["result"])


if __name__ == "__main__":
    main()
