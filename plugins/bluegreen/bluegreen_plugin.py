"""What Airflow's plugin manager loads; operators, hooks and sensors are imported by name."""

from __future__ import annotations

# Imported for their side effect: an executor that forks its tasks forks them with these loaded. Without
# it every task of a rollback spends most of a second on importing them.
import airflow.providers.postgres.hooks.postgres
import airflow.providers.ssh.hooks.ssh
import httpx
import ruamel.yaml
import tenacity
from airflow.plugins_manager import AirflowPlugin

PRELOADED = (airflow.providers.postgres.hooks.postgres, airflow.providers.ssh.hooks.ssh, httpx, ruamel.yaml, tenacity)


class BluegreenPlugin(AirflowPlugin):
    """Makes the project show up in `airflow plugins`."""

    name = "bluegreen"
