"""The lab's Airflow over its REST API, as the demo, the tests and the benchmark use it."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import httpx

TRIGGER_TRIES = 5
PAGE = 100
TERMINAL = frozenset({"success", "failed"})


class AirflowClient:
    """A user of Airflow's REST API.

    :param base_url: e.g. ``http://127.0.0.1:8080``.
    """

    def __init__(self, base_url: str, user: str, password: str) -> None:
        self.base_url = base_url
        self._http = httpx.Client(base_url=base_url, timeout=30, trust_env=False)
        answer = self._http.post("/auth/token", json={"username": user, "password": password})
        answer.raise_for_status()
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a GET below ``/api/v2``."""
        answer = self._http.get(f"/api/v2/{path}", params=params)
        answer.raise_for_status()
        return answer.json()

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send any request below ``/api/v2``."""
        return self._http.request(method, f"/api/v2/{path}", json=body)

    def trigger(self, dag_id: str, conf: dict[str, Any], run_id: str | None = None) -> str:
        """Start a run and return its id."""
        run_id = run_id or f"{dag_id.removeprefix('bluegreen_')}_{uuid.uuid4().hex[:10]}"
        body = {"dag_run_id": run_id, "conf": conf, "logical_date": None}
        for attempt in range(TRIGGER_TRIES):
            answer = self.request("POST", f"dags/{dag_id}/dagRuns", body)
            if attempt and answer.status_code == 409:
                return run_id
            # an Airflow that starts keeps its SQLite database locked for seconds; the id makes a second try safe
            if answer.status_code < 500:
                break
            time.sleep(1)
        if answer.status_code != 200:
            raise RuntimeError(f"{dag_id} was not triggered: {answer.status_code} {answer.text[:500]}")
        return run_id

    def state(self, dag_id: str, run_id: str) -> str:
        """Return a run's state."""
        return str(self.get(f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return a run's task instances, all of them."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=PAGE, offset=len(found))
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return an XCom's value, or None."""
        answer = self.request("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}")
        if answer.status_code != 200:
            return None
        value = answer.json()["value"]
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                return value
        return value

    def wait(self, dag_id: str, run_id: str, *, seconds: float = 300, every_seconds: float = 0.2) -> str:
        """Wait for a run's end and return its state."""
        deadline = time.monotonic() + seconds
        while (state := self.state(dag_id, run_id)) not in TERMINAL:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag_id} {run_id} is {state} after {seconds} s: {self.summary(dag_id, run_id)}")
            time.sleep(every_seconds)
        return state

    def run(self, dag_id: str, conf: dict[str, Any], *, seconds: float = 300) -> tuple[str, dict[str, Any]]:
        """Start a run, wait for its end, and return its state and report."""
        run_id = self.trigger(dag_id, conf)
        state = self.wait(dag_id, run_id, seconds=seconds)
        return state, self.xcom(dag_id, run_id, "report") or {}

    def summary(self, dag_id: str, run_id: str) -> str:
        """Return each task's state in one line."""
        tasks = sorted(self.tasks(dag_id, run_id), key=lambda task: task["start_date"] or "9")
        return ", ".join(f"{task['task_id']}={task['state']}" for task in tasks)

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """Return a task's log as text."""
        answer = self._http.get(
            f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}",
            headers={"Accept": "application/x-ndjson"},
        )
        return answer.text


def lab_client(run_dir: Path, user: str = "admin") -> AirflowClient:
    """Return a client of the Airflow that ``make airflow`` or ``make compose-up`` started.

    :param run_dir: the lab's run folder.
    """
    if (run_dir / "passwords.json").exists():
        url = json.loads((run_dir / "lab.json").read_text())["airflow"]
        return AirflowClient(url, user, json.loads((run_dir / "passwords.json").read_text())[user])
    settings: dict[str, str] = {}
    for line in (run_dir / "airflow.env").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals:
            settings[name] = value.strip("'")
    passwords = json.loads(Path(settings["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).read_text())
    return AirflowClient(settings["AIRFLOW__API__BASE_URL"], user, passwords[user])
