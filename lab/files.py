"""Write the lab's files: into its own folder for its services, and into lab/run for those who use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lab import templates
from lab.airflow_env import airflow_env
from lab.certificates import Authority, Pair
from lab.config import POSTGRES_PORT, REST_PORT, SSH_PORT, Node, Settings, client_tls, find_program, write_private
from lab.machine import generate_key

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
