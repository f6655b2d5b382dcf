"""The lab and its Airflow for the cluster tests: every test begins on a healthy, fresh cluster.

LAB_RUN names the run folder of another lab than the default one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab import lifecycle
from lab.client import AirflowClient, lab_client
from lab.cluster import Lab
from lab.config import CHECKOUT, Settings, load_settings
from lab.standalone import Airflow, read_environment
from tests.cluster.scene import Scene, seed
from tests.cluster.verdict import Picture, look

SNAPSHOT = "tests"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the lab."""
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.cluster)


@dataclass
class State:
    """What the tests share: whether the cluster has to be set back, and how it was."""

    dirty: bool = True
    fresh: Picture | None = field(default=None, repr=False)


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """The run folder of the lab under test."""
    return Path(os.environ.get("LAB_RUN") or CHECKOUT / "lab" / "run").absolute()


@pytest.fixture(scope="session")
def settings(run_folder: Path) -> Settings:
    """The settings of the lab under test."""
    if (run_folder / "lab.json").exists():
        os.environ["LAB_DIR"] = Lab.load(run_folder).info["directory"]
    return load_settings()


@pytest.fixture(scope="session")
def lab(settings: Settings, run_folder: Path) -> Iterator[Lab]:
    """The running lab, with a snapshot in which the tables that the tests work on are seeded.

    Whatever state it is found in, it begins and ends as on its first day.
    """
    if not (settings.directory / "snapshots" / lifecycle.FRESH).exists():
        lifecycle.up(settings, print)
    lab = Lab.load(run_folder)
    with lifecycle.alone(settings):
        lifecycle.reset(settings, lifecycle.FRESH)
        seed(lab)
        lifecycle.snapshot(settings, SNAPSHOT)
    yield lab
    with lifecycle.alone(settings):
        lifecycle.reset(settings, lifecycle.FRESH)


@pytest.fixture(scope="session")
def standalone(lab: Lab, run_folder: Path) -> Iterator[Airflow]:
    """The running Airflow; left as it was found."""
    airflow = Airflow(run_folder, read_environment(run_folder))
    was_running = airflow.start() is None
    yield airflow
    if not was_running:
        airflow.stop()


@pytest.fixture(scope="session")
def airflow(standalone: Airflow, run_folder: Path) -> Iterator[AirflowClient]:
    """A user of that Airflow. The monitor pauses meanwhile: the tests decide when something looks at the cluster."""
    client = lab_client(run_folder)
    monitor = client.request("GET", "dags/bluegreen_monitor")
    pauses = monitor.status_code == 200 and not monitor.json()["is_paused"]
    if pauses:
        client.request("PATCH", "dags/bluegreen_monitor", {"is_paused": True})
    yield client
    if pauses:
        lab_client(run_folder).request("PATCH", "dags/bluegreen_monitor", {"is_paused": False})


@pytest.fixture(scope="session")
def state() -> State:
    """What the tests share."""
    return State()


@pytest.fixture
def clean(lab: Lab, airflow: AirflowClient, settings: Settings, state: State) -> Scene:
    """A fresh cluster, for tests that prove at their end that nothing has changed."""
    if state.dirty:
        with lifecycle.alone(settings):
            lifecycle.reset(settings, SNAPSHOT)
        state.fresh = look(lab)
        state.dirty = False
    assert state.fresh is not None
    return Scene(lab, airflow, state.fresh)


@pytest.fixture
def scene(clean: Scene, state: State) -> Scene:
    """A fresh cluster, for tests that change it."""
    state.dirty = True
    return clean
