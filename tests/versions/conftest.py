"""Other servers, other layouts: each file runs on labs of its own, which `make test-versions` brings up.

A plain pytest leaves this folder out: it takes many minutes. The lab, the scenes and the verdict are those of
tests/cluster; the DAGs run in one process, without a running Airflow, which tests/cluster has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.cluster import Lab
from lab.standalone import read_environment
from tests.cluster.conftest import clean, keeper, lab, run_folder, scene, settings, state  # noqa: F401
from tests.versions.inline import Inline

HERE = Path(__file__).parent

collect_ignore_glob = [] if os.environ.get("BLUEGREEN_VERSIONS") else ["test_*.py"]


@pytest.fixture(scope="session")
def airflow(lab: Lab, run_folder: Path) -> Iterator[Inline]:  # noqa: F811
    """Who runs the DAGs."""
    inline = Inline(read_environment(run_folder), run_folder / "inline")
    yield inline
    inline.close()


def pytest_configure(config: pytest.Config) -> None:
    """The marker of this folder."""
    config.addinivalue_line("markers", "versions: needs a lab of its own, see lab/versions.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is told apart from the tests of the lab that `make test` runs on."""
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.versions)
