"""Other servers, other layouts: each file runs on labs of its own, which `make test-versions` brings up.

A plain pytest leaves this folder out: it takes many minutes. The lab and its Airflow, the scenes and the verdict
are those of tests/cluster.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.cluster.conftest import (  # noqa: F401
    airflow,
    clean,
    lab,
    run_folder,
    scene,
    settings,
    standalone,
    state,
)

HERE = Path(__file__).parent

collect_ignore_glob = [] if os.environ.get("BLUEGREEN_VERSIONS") else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """The marker of this folder."""
    config.addinivalue_line("markers", "versions: needs a lab of its own, see lab/versions.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is told apart from the tests of the lab that `make test` runs on."""
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.versions)
