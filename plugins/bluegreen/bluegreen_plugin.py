"""What Airflow's plugin manager loads; operators, hooks and sensors are imported by name."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class BluegreenPlugin(AirflowPlugin):
    """Makes the project show up in `airflow plugins`."""

    name = "bluegreen"
