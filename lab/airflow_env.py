"""What the lab's Airflow is told: its settings, its port, and its connections."""

from __future__ import annotations

import contextlib
import json
import secrets as random
from pathlib import Path

from lab.config import CHECKOUT, POSTGRES_PORT, SSH_PORT, Settings, client_tls, write_private
from lab.machine import is_free


def airflow_settings(secrets: dict[str, str], url: str) -> dict[str, str]:
    """What the Airflow of every lab is told, on this machine or in containers.

    :param url: where a person's browser finds it.
    """
    return {
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__FERNET_KEY": secrets["fernet"],
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        # a task whose api-server is not up yet fails after five requests, within some 15 s, and has used up a try
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "10",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets["session"],
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets["jwt"],
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def airflow_env(settings: Settings, secrets: dict[str, str]) -> str:
    """What Airflow needs to work on this lab, as lines that a shell can read."""
    home = airflow_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    passwords = home / "passwords.json"
    write_private(passwords, json.dumps({"admin": secrets["airflow_admin"], "viewer": secrets["airflow_viewer"]}))
    port = airflow_port(settings)
    url = f"http://127.0.0.1:{port}"
    values = {
        **airflow_settings(secrets, url),
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__DAGS_FOLDER": CHECKOUT / "dags",
        "AIRFLOW__CORE__PLUGINS_FOLDER": CHECKOUT / "plugins",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW_CONN_LAB_POSTGRES": postgres_connection(settings, secrets),
        "AIRFLOW_CONN_LAB_SSH": ssh_connection(settings),
        "BLUEGREEN_CLUSTERS": settings.run / "clusters.yaml",
    }
    if settings.tls:
        values["AIRFLOW_CONN_LAB_PATRONI"] = patroni_connection(settings, secrets)
    lines = [f"{key}='{value}'" for key, value in values.items()]
    # the only line that a shell has to expand
    lines.append(f'PATH="{CHECKOUT}/.venv/bin:$PATH"')
    return "\n".join(lines) + "\n"


def airflow_home(settings: Settings) -> Path:
    """Where Airflow keeps its database and logs for this lab."""
    is_default = settings.run == CHECKOUT / "lab" / "run"
    return CHECKOUT / "airflow-home" if is_default else settings.run / "airflow-home"


def airflow_port(settings: Settings) -> int:
    """The web server's port: 8080 where that is free, any other otherwise; chosen once, then kept."""
    kept = settings.run / "airflow.port"
    with contextlib.suppress(OSError, ValueError):
        return int(kept.read_text())
    port = next(port for port in (8080, *_random_ports()) if is_free("127.0.0.1", port))
    kept.write_text(f"{port}\n")
    return port


def _random_ports() -> list[int]:
    return [20000 + random.randbelow(12000) for _ in range(100)]


def postgres_connection(settings: Settings, secrets: dict[str, str]) -> str:
    """The Airflow connection to PostgreSQL; host and port are only a default, the leader is looked up."""
    tls = {"sslmode": "verify-full", "sslrootcert": client_tls(settings, secrets)["postgres_ca"]}
    return json.dumps(
        {
            "conn_type": "postgres",
            "login": "bluegreen",
            "password": secrets["bluegreen"],
            "host": settings.nodes[0].host,
            "port": POSTGRES_PORT,
            "schema": "app",
            **({"extra": tls} if settings.tls else {}),
        }
    )


def patroni_connection(settings: Settings, secrets: dict[str, str]) -> str:
    """The Airflow connection to Patroni's REST API, in a lab with TLS."""
    tls = client_tls(settings, secrets)
    return json.dumps(
        {
            "conn_type": "http",
            "login": tls["user"],
            "password": tls["password"],
            "extra": {"verify": tls["patroni_ca"], "cert": tls["certificate"], "key": tls["key"]},
        }
    )


def ssh_connection(settings: Settings) -> str:
    """The Airflow connection to the members; host keys are pinned in the registry and never ignored."""
    return json.dumps(
        {
            "conn_type": "ssh",
            "login": settings.user.pw_name,
            "host": settings.nodes[0].host,
            "port": SSH_PORT,
            "extra": {
                "key_file": str(settings.run / "client_ed25519"),
                "conn_timeout": 5,
                "no_host_key_check": False,
                "allow_host_key_change": False,
            },
        }
    )
