"""The environment, set before anything imports Airflow: a home of its own, with this project's folders.

tests/cluster talks to a running Airflow over REST and reads its own variables; nothing of those is changed here.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_HOME = Path(tempfile.mkdtemp(prefix="bluegreen-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

# A sourced environment could name a real database. What is set here is no more than what the lab's own
# environment file sets again, since the lab starts its Airflow with this process's environment below its own.
for _name in [name for name in os.environ if name.startswith("AIRFLOW__")]:
    del os.environ[_name]
os.environ.update(
    {
        "AIRFLOW_HOME": str(_HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
)

# A loaded machine must not make a test fail: time is bounded where a test says so.
settings.register_profile("bluegreen", deadline=None, print_blob=True)
settings.load_profile("bluegreen")


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Airflow's metadata database, empty, in a temporary file."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture(scope="session")
def project_root() -> Path:
    return PROJECT_ROOT
