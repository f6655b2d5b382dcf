"""The lab and its Airflow for the cluster tests: every test begins on a healthy, fresh cluster.

LAB_RUN names the run folder of another lab than the default one; compose/run is that of docker-compose.yaml.
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
from lab.compose.stack import ComposeAirflow, ComposeLab
from lab.config import CHECKOUT, Settings, load_settings
from lab.standalone import Airflow, read_environment
from tests.cluster.scene import Scene, seed
from tests.cluster.verdict import Picture, look

SNAPSHOT = "tests"
HERE = Path(__file__).parent


# on containers: what reaches into processes and files of Airflow or of a server, or needs a WAL archive
ONE_MACHINE = {"test_archive.py", "test_crash_of_recovery.py", "test_secrets.py"}
ONE_MACHINE_CASES = {
    "test_a_mark_that_the_standby_has_applied_is_taken_again",
    "test_an_interrupted_runbook_goes_on_when_it_is_run_again",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the lab; what takes minutes is left out unless it is asked for."""
    containers = is_compose(_run_folder())
    for item in list(items):
        if HERE in Path(item.path).parents:
            if item.get_closest_marker("whole") and os.environ.get("BLUEGREEN_FAULTS") != "all":
                items.remove(item)
            item.add_marker(pytest.mark.cluster)
            if containers and (Path(item.path).name in ONE_MACHINE or item.name in ONE_MACHINE_CASES):
                item.add_marker(
                    pytest.mark.skip(
                        reason="needs Airflow's or a server's processes, or a WAL archive, on this machine"
                    )
                )


def _run_folder() -> Path:
    return Path(os.environ.get("LAB_RUN") or CHECKOUT / "lab" / "run").absolute()


def is_compose(run: Path) -> bool:
    """Whether the lab is that of docker-compose.yaml."""
    return (run / "lab.json").exists() and Lab.load(run).info.get("kind") == "compose"


@dataclass
class State:
    """What the tests share: whether the cluster has to be set back, and how it was."""

    dirty: bool = True
    fresh: Picture | None = field(default=None, repr=False)


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """The run folder of the lab under test."""
    return _run_folder()


@pytest.fixture(scope="session")
def settings(run_folder: Path) -> Settings:
    """The settings of the lab under test, where it is one on this machine."""
    if (run_folder / "lab.json").exists():
        os.environ["LAB_DIR"] = Lab.load(run_folder).info["directory"]
    return load_settings()


@dataclass(frozen=True)
class Keeper:
    """Keeps states of the lab, and sets it back to them."""

    lab: Lab
    settings: Settings | None

    def reset(self, name: str = SNAPSHOT) -> None:
        """Go back to a kept state."""
        if isinstance(self.lab, ComposeLab):
            self.lab.reset(name)
        else:
            assert self.settings
            with lifecycle.alone(self.settings):
                lifecycle.reset(self.settings, name)

    def keep(self, name: str = SNAPSHOT) -> None:
        """Keep the present state."""
        if isinstance(self.lab, ComposeLab):
            self.lab.snapshot(name)
        else:
            assert self.settings
            with lifecycle.alone(self.settings):
                lifecycle.snapshot(self.settings, name)


@pytest.fixture(scope="session")
def keeper(run_folder: Path, request: pytest.FixtureRequest) -> Keeper:
    """Who sets the lab back."""
    if is_compose(run_folder):
        return Keeper(ComposeLab.load(run_folder), None)
    settings: Settings = request.getfixturevalue("settings")
    if not (settings.directory / "snapshots" / lifecycle.FRESH).exists():
        lifecycle.up(settings, print)
    return Keeper(Lab.load(run_folder), settings)


@pytest.fixture(scope="session")
def lab(keeper: Keeper) -> Iterator[Lab]:
    """The running lab, with a snapshot in which the tables that the tests work on are seeded.

    Whatever state it is found in, it begins and ends as on its first day.
    """
    keeper.reset(lifecycle.FRESH)
    seed(keeper.lab)
    keeper.keep()
    yield keeper.lab
    keeper.reset(lifecycle.FRESH)


@pytest.fixture(scope="session")
def standalone(lab: Lab, run_folder: Path) -> Iterator[Airflow | ComposeAirflow]:
    """The running Airflow; left as it was found."""
    if isinstance(lab, ComposeLab):
        yield ComposeAirflow(run_folder)
        return
    airflow = Airflow(run_folder, read_environment(run_folder))
    was_running = airflow.start() is None
    yield airflow
    if not was_running:
        airflow.stop()


@pytest.fixture
def registry(standalone: Airflow | ComposeAirflow) -> Iterator[Path]:
    """The lab's registry, put back afterwards."""
    path = Path(standalone.environment["BLUEGREEN_CLUSTERS"])
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.fixture(scope="session")
def airflow(standalone: Airflow | ComposeAirflow, run_folder: Path) -> Iterator[AirflowClient]:
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
def clean(lab: Lab, airflow: AirflowClient, keeper: Keeper, state: State) -> Scene:
    """A fresh cluster, for tests that prove at their end that nothing has changed."""
    if state.dirty:
        keeper.reset()
        state.fresh = look(lab)
        state.dirty = False
    assert state.fresh is not None
    return Scene(lab, airflow, state.fresh)


@pytest.fixture
def scene(clean: Scene, state: State) -> Scene:
    """A fresh cluster, for tests that change it."""
    state.dirty = True
    return clean
