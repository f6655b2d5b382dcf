"""What a deployment's command is told."""

from __future__ import annotations

from bluegreen.operators.deploy import command_environment

SECRET = (
    "AIRFLOW_CONN_ORDERS_SSH",
    "AIRFLOW_VAR_TOKEN",
    "AIRFLOW_UI_PASSWORDS",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "_AIRFLOW_WWW_USER_PASSWORD",
    "PGPASSWORD",
    "PGSERVICEFILE",
)
KEPT = ("PATH", "HOME", "HTTPS_PROXY", "AIRFLOW_HOME", "AIRFLOW_CTX_DAG_RUN_ID", "BLUEGREEN_CLUSTERS")


def test_a_command_gets_no_secret_of_its_worker() -> None:
    worker = dict.fromkeys((*SECRET, *KEPT), "x")
    assert command_environment(worker) == dict.fromkeys(KEPT, "x")
