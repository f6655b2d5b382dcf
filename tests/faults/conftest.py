"""A lab and an Airflow whose tasks can be stopped at a point, for tests that break things on purpose.

`make test` runs the spread; BLUEGREEN_FAULTS=all, which `make test-faults` sets, the whole matrix.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from lab.client import AirflowClient, lab_client
from lab.cluster import Lab
from lab.config import CHECKOUT
from lab.standalone import Airflow, read_environment
from tests.cluster.conftest import Keeper, clean, keeper, lab, run_folder, scene, settings, state  # noqa: F401
from tests.cluster.scene import Scene
from tests.cluster.verdict import Contents, look
from tests.faults.breakpoints import Breakpoints
from tests.faults.cases import SPREAD, Case
from tests.faults.damage import Place
from tests.faults.play import Result

HERE = Path(__file__).parent
# a task whose worker is gone is noticed after half a minute instead of five
QUICK = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is not asked for."""
    everything = os.environ.get("BLUEGREEN_FAULTS") == "all"
    for item in list(items):
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.faults)
            case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
            in_spread = case.id in SPREAD if isinstance(case, Case) else not item.get_closest_marker("whole")
            if not in_spread and not everything:
                items.remove(item)


@pytest.fixture(scope="session")
def points() -> Iterator[Breakpoints]:
    """Where tasks stop."""
    with tempfile.TemporaryDirectory(prefix="breakpoints-") as folder:
        yield Breakpoints(Path(folder))


@pytest.fixture(scope="session")
def stoppable(lab: Lab, run_folder: Path, points: Breakpoints) -> Iterator[Airflow]:  # noqa: F811
    """An Airflow whose tasks stop at points; one that ran before is started again afterwards."""
    plain = Airflow(run_folder, read_environment(run_folder))
    was_running = plain.stop()
    airflow = Airflow(run_folder, points.environment({**plain.environment, **QUICK}, CHECKOUT))
    airflow.start()
    client = lab_client(run_folder)
    client.request("PATCH", "dags/bluegreen_monitor", {"is_paused": True})
    yield airflow
    points.clear()
    lab_client(run_folder).request("PATCH", "dags/bluegreen_monitor", {"is_paused": False})
    airflow.stop()
    if was_running:
        plain.start()


@pytest.fixture(scope="session")
def airflow(stoppable: Airflow, run_folder: Path) -> AirflowClient:  # noqa: F811
    """A user of that Airflow."""
    return lab_client(run_folder)


class Stage:
    """Sets the cluster to where an operation begins.

    :param deployed: what the leader has after the deployment, once there was one.
    """

    def __init__(self, keeper: Keeper, airflow: AirflowClient) -> None:  # noqa: F811
        self.keeper, self.lab, self.airflow = keeper, keeper.lab, airflow
        self.deployed: Contents = {}

    def set(self, operation: str) -> Scene:
        """The cluster before this operation: fresh, or with a checkpoint and a deployment after it."""
        self.keeper.reset()
        found = Scene(self.lab, self.airflow, look(self.lab))
        held = next(name for name in self.lab.names if name != found.fresh.leader)
        if operation == "checkpoint":
            found.record = {"held": held}
        else:
            found.checkpoint(standby=held)
            self.deployed = found.deploy_badly()
        return found


@pytest.fixture(scope="session")
def stage(lab: Lab, keeper: Keeper, airflow: AirflowClient) -> Stage:  # noqa: F811
    """Where the cases are played."""
    return Stage(keeper, airflow)


@pytest.fixture
def place_of(stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path) -> Any:
    """Make the place of a case."""

    def make(case: Case) -> Place:
        begun = stage.set(case.operation)
        return Place(begun, points, begun.who(case.member), tmp_path, stoppable)

    return make


class Results:
    """What became of the cases, kept beside lab.json for the summary as they end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: list[dict[str, Any]] = []
        self._write()

    def add(self, one: Result) -> None:
        """Keep one more."""
        self.found.append(asdict(one))
        self._write()

    def _write(self) -> None:
        self.file.write_text(json.dumps(self.found, indent=1))


@pytest.fixture(scope="session", autouse=True)
def results(run_folder: Path) -> Results:  # noqa: F811
    """What became of the cases."""
    return Results(run_folder / "faults.json")
