"""What only separate hosts can show, on the stack of docker-compose.yaml: `make test-compose` brings it up."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.client import AirflowClient
from lab.compose.files import Place
from lab.compose.stack import ComposeLab
from tests.cluster.conftest import (  # noqa: F401
    Keeper,
    airflow,
    clean,
    is_compose,
    keeper,
    lab,
    run_folder,
    scene,
    standalone,
    state,
)
from tests.cluster.conftest import _run_folder as folder_under_test
from tests.faults.conftest import Stage

HERE = Path(__file__).parent
collect_ignore_glob = [] if is_compose(folder_under_test()) else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of it needs the stack."""
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def stage(lab: ComposeLab, keeper: Keeper, airflow: AirflowClient) -> Stage:  # noqa: F811
    """Sets the cluster to where an operation begins."""
    return Stage(keeper, airflow)


@pytest.fixture
def celery() -> None:
    """Only with Celery's workers."""
    if not Place.load().celery:
        pytest.skip("needs the profile celery")
