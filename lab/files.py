"""Write the lab's files: into its own folder for its services, and into lab/run for those who use it."""

from __future__ import annotations

import contextlib
import json
import secrets as random
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lab import templates
from lab.certificates import Authority, Pair
from lab.config import CHECKOUT, POSTGRES_PORT, REST_PORT, SSH_PORT, Node, Settings, find_program, write_private
from lab.machine import generate_key, is_free

# what a client needs of a lab with TLS
CLIENT_TLS = ("postgres_ca.pem", "patroni_ca.pem", "client.pem", "client.key")


def write_services(settings: Settings, secrets: dict[str, str]) -> None:
    """Everything that the services read. A Patroni YAML that exists stays as it is."""
    for name in ("log", "ssh", "archive"):
        settings.folder(settings.directory / name)
    settings.folder(settings.socket_dir)
    write_ssh(settings)
    if settings.tls:
        write_certificates(settings)
    for node in settings.nodes:
        settings.folder(node.directory)
        settings.folder(node.directory / "log")
        settings.folder(settings.socket_dir / node.name)
        if not node.data_dir.exists():
            settings.write(node.patroni_config, templates.patroni_yaml(settings, node, secrets))
    conf = templates.supervisord_conf(settings, find_program("etcd"), find_program("sshd"))
    settings.write(settings.supervisord_conf, conf)
    settings.write(settings.directory / "ctl", templates.ctl_script(settings), 0o700)


def write_ssh(settings: Settings) -> None:
    """Host keys, the client's key and the servers' configurations."""
    folder = settings.directory / "ssh"
    client = generate_key(settings, folder / "client_ed25519", "bluegreen lab")
    settings.write(folder / "authorized_keys", client + "\n")
    for node in settings.nodes:
        generate_key(settings, folder / f"{node.name}_host_ed25519", node.name)
        settings.write(folder / f"{node.name}.conf", templates.sshd_config(settings, node))


def write_certificates(settings: Settings) -> None:
    """Two authorities, one for PostgreSQL and one for Patroni, and what they sign; made once."""
    folder = settings.folder(settings.tls_dir)
    for service in ("postgres", "patroni"):
        path = folder / f"{service}_ca.pem"
        if path.exists():
            continue
        authority = Authority.create(f"{settings.name} {service}")
        for node in settings.nodes:
            write_pair(settings, folder / f"{node.name}_{service}.pem", authority.issue(node.host))
        if service == "patroni":
            write_pair(settings, folder / "client.pem", authority.issue("bluegreen"))
        write_pair(settings, path, authority.pair)


def write_pair(settings: Settings, path: Path, pair: Pair) -> None:
    """A certificate, and beside it its key."""
    settings.write(path.with_suffix(".key"), pair.key)
    settings.write(path, pair.certificate)


def write_run(settings: Settings, secrets: dict[str, str]) -> None:
    """Everything that a client needs: lab.json, keys, the registry and Airflow's environment."""
    run = settings.run
    run.mkdir(parents=True, exist_ok=True)
    write_private(run / "client_ed25519", (settings.directory / "ssh" / "client_ed25519").read_text())
    write_private(run / "ssh_config", templates.ssh_config(settings))
    if settings.tls:
        for name in CLIENT_TLS:
            write_private(run / name, (settings.tls_dir / name).read_text())
    keys = host_keys(settings)
    known = [f"[{node.host}]:{SSH_PORT} {keys[node.name]}\n" for node in settings.nodes]
    write_private(run / "known_hosts", "".join(known))
    write_private(run / "lab.json", json.dumps(lab_json(settings, secrets), indent=2) + "\n")
    with (run / "clusters.yaml").open("w") as file:
        yaml = YAML()
        yaml.default_flow_style = False
        yaml.width = 4096
        yaml.dump(registry(settings), file)
    write_private(run / "airflow.env", airflow_env(settings, secrets))


def host_keys(settings: Settings) -> dict[str, str]:
    """Each member's public host key, without the comment."""
    folder = settings.directory / "ssh"
    return {
        node.name: " ".join((folder / f"{node.name}_host_ed25519.pub").read_text().split()[:2])
        for node in settings.nodes
    }


def lab_json(settings: Settings, secrets: dict[str, str]) -> dict[str, Any]:
    """Where everything is."""
    nodes = [
        {
            "name": node.name,
            "host": node.host,
            "port": POSTGRES_PORT,
            "rest": rest_url(settings, node),
            "ssh_port": SSH_PORT,
            "data_dir": str(node.data_dir),
            "patroni_config": str(node.patroni_config),
            "socket_dir": str(settings.socket_dir / node.name),
            "postgres_log": str(node.directory / "log" / "postgresql.log"),
            "patroni_log": str(settings.directory / "log" / f"{node.program}.log"),
        }
        for node in settings.nodes
    ]
    users = ("postgres", "replicator", "rewind_user", "bluegreen", "release")
    return {
        "name": settings.name,
        "nodes": nodes,
        "superuser": "postgres",
        "password": secrets["postgres"],
        "database": "app",
        "users": {user: secrets[user] for user in users},
        "tls": client_tls(settings, secrets) if settings.tls else None,
        "bin_dir": str(settings.bin_dir),
        "lib_dir": str(settings.lib_dir) if settings.lib_dir else None,
        "server_version": settings.server_version,
        "dcs": settings.dcs,
        "patronictl": str(settings.venv / "bin" / "patronictl"),
        "ssh_user": settings.user.pw_name,
        "ssh_key": str(settings.run / "client_ed25519"),
        "ssh_config": str(settings.run / "ssh_config"),
        "ssh_host_keys": host_keys(settings),
        "directory": str(settings.directory),
        "run": str(settings.run),
        "archive": str(settings.directory / "archive") if settings.archive else None,
        "ctl": str(settings.directory / "ctl"),
        "supervisor_socket": str(settings.supervisor_socket),
        "supervisorctl": f"{settings.venv}/bin/supervisorctl -c {settings.supervisord_conf}",
    }


def rest_url(settings: Settings, node: Node) -> str:
    """Where a member's REST API is."""
    return f"{'https' if settings.tls else 'http'}://{node.host}:{REST_PORT}"


def client_tls(settings: Settings, secrets: dict[str, str]) -> dict[str, str]:
    """What a client of a lab with TLS needs, beside the users of the database."""
    return {
        "postgres_ca": str(settings.run / "postgres_ca.pem"),
        "patroni_ca": str(settings.run / "patroni_ca.pem"),
        "certificate": str(settings.run / "client.pem"),
        "key": str(settings.run / "client.key"),
        "user": "patroni",
        "password": secrets["patroni"],
    }


def registry(settings: Settings) -> dict[str, Any]:
    """The registry of this one cluster, in the format of include/clusters.yaml."""
    ctl = settings.directory / "ctl"
    checks = ["select count(*) = 1000 from orders", "select bool_and(total > 0) from orders"]
    cluster = {
        "patroni": [rest_url(settings, node) for node in settings.nodes],
        **({"patroni_conn_id": "lab_patroni"} if settings.tls else {}),
        "postgres_conn_id": "lab_postgres",
        "ssh_conn_id": "lab_ssh",
        "ssh_hosts": {node.name: node.host for node in settings.nodes},
        "ssh_host_keys": host_keys(settings),
        "node": {
            "patroni_config": f"{settings.directory}/{{member}}/patroni.yml",
            "patronictl": str(settings.venv / "bin" / "patronictl"),
            "os_user": settings.user.pw_name,
            "start": f"{ctl} start {{member}}",
            "stop": f"{ctl} stop {{member}}",
            "status": f"{ctl} status {{member}}",
        },
        "limits": {"lag_bytes": "64MB", "disk_free_percent": 2},
        "expires_after": "24h",
        "adhoc": True,
        "deployments": {
            "good": {"sql": "demo/good.sql", "checks": list(checks)},
            "bad": {"sql": "demo/bad.sql", "checks": list(checks)},
        },
    }
    return {"clusters": {settings.name: cluster}}


def airflow_home(settings: Settings) -> Path:
    """Where Airflow keeps its database and logs for this lab."""
    is_default = settings.run == CHECKOUT / "lab" / "run"
    return CHECKOUT / "airflow-home" if is_default else settings.run / "airflow-home"


def airflow_env(settings: Settings, secrets: dict[str, str]) -> str:
    """What Airflow needs to work on this lab, as lines that a shell can read."""
    home = airflow_home(settings)
    home.mkdir(parents=True, exist_ok=True)
    passwords = home / "passwords.json"
    write_private(passwords, json.dumps({"admin": secrets["airflow_admin"], "viewer": secrets["airflow_viewer"]}))
    port = airflow_port(settings)
    url = f"http://127.0.0.1:{port}"
    values = {
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__DAGS_FOLDER": CHECKOUT / "dags",
        "AIRFLOW__CORE__PLUGINS_FOLDER": CHECKOUT / "plugins",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__FERNET_KEY": secrets["fernet"],
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        # a task whose api-server is not up yet fails after five requests, within 20 s, and has used up a try
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "10",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets["session"],
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets["jwt"],
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
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
