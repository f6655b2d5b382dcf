"""What the containers read: secrets, keys, the registry, each node's configuration. All below compose/run."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets as random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lab.airflow_env import airflow_settings
from lab.config import CHECKOUT, POSTGRES_PORT, REST_PORT, LabError, write_private

RUN = CHECKOUT / "compose" / "run"
REGISTRY = RUN / "registry" / "clusters.yaml"
DATA_DIR, CONFIG = "/var/lib/postgresql/15/main", "/etc/patroni/config.yml"
BIN_DIR = "/usr/lib/postgresql/15/bin"
SSH_USER, SSH_PORT = "bluegreen", 22
CLUSTERS = {"orders": {"n1": 11, "n2": 12, "n3": 13}, "billing": {"m1": 21, "m2": 22}}
MOUNTED = ("dags", "plugins", "include", "compose/haproxy.cfg")
ETCD_NODES = ("n1", "n2", "n3")
NEIGHBOURS = ("localhost", "127.0.0.1", "api-server", "metadata", "redis", "haproxy")
# what docker-compose.yaml reads
ENV_FILES = ("metadata.env", "redis.env", "airflow.env", "api-server.env")
USERS = ("postgres", "replicator", "rewind_user", "bluegreen", "release")


@dataclass(frozen=True)
class Place:
    """Where the stack is on this machine.

    :param subnet: the first three numbers of the containers' network.
    :param port: the web server's, on loopback.
    """

    subnet: str
    port: int
    leader_port: int
    replica_port: int
    profiles: tuple[str, ...]

    @classmethod
    def load(cls) -> Place:
        """As the environment says, else as it was the last time, else the defaults of docker-compose.yaml.

        :raises LabError: when a value is none that can be.
        """
        kept = RUN / "place.json"
        values = {"SUBNET": "172.30.77", "PORT": "8080", "LEADER_PORT": "5000", "REPLICA_PORT": "5001"}
        values |= {"PROFILES": "lab", **(json.loads(kept.read_text()) if kept.exists() else {})}
        values |= {name: os.environ[name] for name in values if name in os.environ}
        if not re.fullmatch(r"\d{1,3}\.\d{1,3}\.\d{1,3}", values["SUBNET"]):
            raise LabError(f"SUBNET={values['SUBNET']}: expected the first three numbers of a network, as 172.30.77")
        for name in ("PORT", "LEADER_PORT", "REPLICA_PORT"):
            if not re.fullmatch(r"\d{2,5}", values[name]):
                raise LabError(f"{name}={values[name]}: expected a port")
        profiles = tuple(name for name in values["PROFILES"].split(",") if name)
        if set(profiles) - {"lab", "celery"}:
            raise LabError(f"PROFILES={values['PROFILES']}: expected lab, celery, both with a comma, or nothing")
        port, leader, replica = (int(values[name]) for name in ("PORT", "LEADER_PORT", "REPLICA_PORT"))
        return cls(values["SUBNET"], port, leader, replica, profiles)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that docker-compose.yaml reads."""
        return {
            "SUBNET": self.subnet,
            "PORT": str(self.port),
            "LEADER_PORT": str(self.leader_port),
            "REPLICA_PORT": str(self.replica_port),
            "PROFILES": ",".join(self.profiles),
        }

    @property
    def celery(self) -> bool:
        """Whether tasks run on Celery's workers."""
        return "celery" in self.profiles

    @property
    def hosts(self) -> dict[str, str]:
        """Every node's address."""
        return {name: f"{self.subnet}.{last}" for nodes in CLUSTERS.values() for name, last in nodes.items()}


def write_all(place: Place) -> None:
    """Write everything that is missing or may have changed; secrets and keys are made once.

    :raises LabError: when the nodes have data of another network, whose addresses are in them.
    """
    check_readable()
    RUN.mkdir(mode=0o700, exist_ok=True)
    if (RUN / "place.json").exists():
        before = json.loads((RUN / "place.json").read_text())["SUBNET"]
        if before != place.subnet and any((RUN / name / "patroni" / ".seeded").exists() for name in place.hosts):
            raise LabError(
                f"SUBNET={place.subnet}: the nodes were made for {before}, expected that, or their data removed: "
                "make compose-down VOLUMES=1"
            )
    write_private(RUN / "place.json", json.dumps(place.environment))
    known = load_secrets()
    client = _key(RUN / "client_ed25519", "bluegreen")
    for cluster, nodes in CLUSTERS.items():
        for name in nodes:
            seed = RUN / name / "seed"
            seed.mkdir(parents=True, exist_ok=True)
            for folder in ("patroni", "postgresql", *(["etcd"] if name in ETCD_NODES else [])):
                (RUN / name / folder).mkdir(exist_ok=True)
            _key(seed / "ssh_host_ed25519_key", name)
            write_private(seed / "authorized_keys", client + "\n")
            write_private(seed / "patroni.yml", patroni_yaml(place, cluster, name, known))
            if name in ETCD_NODES:
                write_private(seed / "etcd", etcd_environment(place, name))
    _write_registry(place)
    ssh_config = "".join(f"Host {name}\n  HostName {host}\n\n" for name, host in place.hosts.items())
    ssh_config += f"""\
Host *
  User {SSH_USER}
  IdentityFile {RUN}/client_ed25519
  IdentitiesOnly yes
  UserKnownHostsFile {RUN}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
  LogLevel ERROR
"""
    write_private(RUN / "ssh_config", ssh_config)
    write_private(RUN / "known_hosts", "".join(f"{place.hosts[name]} {host_key(name)}\n" for name in place.hosts))
    write_private(RUN / "metadata.env", f"METADATA_PASSWORD={known['metadata']}\n")
    write_private(RUN / "redis.env", f"REDIS_PASSWORD={known['redis']}\n")
    write_private(RUN / "airflow.env", _env(container_environment(place, known)))
    write_private(RUN / "api-server.env", _env(api_server_environment(known)))
    write_private(RUN / "passwords.json", json.dumps(_ui_passwords(known)))
    write_private(RUN / "lab.json", json.dumps(lab_json(place, known), indent=2) + "\n")


def check_readable() -> None:
    """See that the containers' users may read what is mounted from this checkout.

    :raises LabError: when they may not, as after a checkout with a strict umask.
    """
    for name in MOUNTED:
        for path in (CHECKOUT / name, *(CHECKOUT / name).rglob("*")):
            wanted = 0o005 if path.is_dir() else 0o004
            if not path.is_symlink() and path.stat().st_mode & wanted != wanted:
                raise LabError(
                    f"{path} may be read by its owner alone, and the containers' users are others: "
                    f"chmod -R go+rX {' '.join(MOUNTED)}"
                )


def load_secrets() -> dict[str, str]:
    """The generated passwords and keys."""
    path = RUN / "secrets.json"
    kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    names = (*USERS, "metadata", "redis", "airflow_admin", "airflow_viewer", "jwt", "session")
    fresh = {name: random.token_urlsafe(32) for name in names}
    fresh["fernet"] = base64.urlsafe_b64encode(os.urandom(32)).decode()
    if set(fresh) - set(kept):
        kept = {**fresh, **kept}
        write_private(path, json.dumps(kept, indent=2))
    return kept


def _key(path: Path, comment: str) -> str:
    """An ed25519 key pair, made once; return its public part."""
    if not path.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
        subprocess.run(command, check=True)
    return path.with_name(path.name + ".pub").read_text().strip()


def host_key(name: str) -> str:
    """A node's public host key, without the comment."""
    return " ".join((RUN / name / "seed" / "ssh_host_ed25519_key.pub").read_text().split()[:2])


def patroni_yaml(place: Place, cluster: str, name: str, known: dict[str, str]) -> str:
    """Patroni's configuration of one node, with the paths of Debian's packages."""
    host = place.hosts[name]
    etcd = "".join(f"  - {place.hosts[node]}:2379\n" for node in ETCD_NODES)
    return f"""\
# Patroni on {name}, a member of {cluster}
scope: {cluster}
namespace: /service/
name: {name}

restapi:
  listen: 0.0.0.0:{REST_PORT}
  connect_address: {host}:{REST_PORT}

etcd3:
  hosts:
{etcd}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 5
    retry_timeout: 5
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        shared_buffers: 32MB
        max_connections: 60
        max_wal_size: 256MB
        wal_keep_size: 128MB
        wal_log_hints: "on"
        hot_standby: "on"
        max_wal_senders: 10
        max_replication_slots: 10
  initdb:
  - encoding: UTF8
  - locale: C.UTF-8
  - data-checksums

postgresql:
  listen: 0.0.0.0:{POSTGRES_PORT}
  connect_address: {host}:{POSTGRES_PORT}
  data_dir: {DATA_DIR}
  bin_dir: {BIN_DIR}
  pgpass: /var/lib/postgresql/.pgpass_patroni
  authentication:
    superuser:
      username: postgres
      password: {known["postgres"]}
    replication:
      username: replicator
      password: {known["replicator"]}
    rewind:
      username: rewind_user
      password: {known["rewind_user"]}
  parameters:
    unix_socket_directories: /var/run/postgresql
    logging_collector: "on"
    log_directory: /var/lib/postgresql/log
    log_filename: postgresql.log
    log_line_prefix: "%m [%p] "
  basebackup:
  - checkpoint: fast
  pg_hba:
  - local all         all                      scram-sha-256
  - host  all         all        127.0.0.1/32 scram-sha-256
  - host  replication replicator 127.0.0.1/32 scram-sha-256
  - host  all         all        {place.subnet}.0/24 scram-sha-256
  - host  replication replicator {place.subnet}.0/24 scram-sha-256

tags:
  nofailover: false
  noloadbalance: false
  clonefrom: false
  nosync: false
"""


def etcd_environment(place: Place, name: str) -> str:
    """One of the three members of etcd."""
    host = place.hosts[name]
    members = ",".join(f"{node}=http://{place.hosts[node]}:2380" for node in ETCD_NODES)
    return "".join(
        f'ETCD_{key}="{value}"\n'
        for key, value in {
            "NAME": name,
            "DATA_DIR": "/var/lib/etcd/default",
            "LISTEN_PEER_URLS": f"http://{host}:2380",
            "LISTEN_CLIENT_URLS": f"http://{host}:2379,http://127.0.0.1:2379",
            "INITIAL_ADVERTISE_PEER_URLS": f"http://{host}:2380",
            "ADVERTISE_CLIENT_URLS": f"http://{host}:2379",
            "INITIAL_CLUSTER": members,
            "INITIAL_CLUSTER_TOKEN": "bluegreen",
            "INITIAL_CLUSTER_STATE": "new",
            # all three share the disk and the processors of one machine
            "HEARTBEAT_INTERVAL": "250",
            "ELECTION_TIMEOUT": "2500",
        }.items()
    )


def _write_registry(place: Place) -> None:
    """The lab's clusters, or a first copy of include/clusters.yaml for those of the user, which stays.

    It lies in a folder, since an editor puts a new file in the place of the old one, which a mounted file hides.
    """
    REGISTRY.parent.mkdir(exist_ok=True)
    if "lab" not in place.profiles:
        if not REGISTRY.exists():
            shutil.copyfile(CHECKOUT / "include" / "clusters.yaml", REGISTRY)
            _readable(REGISTRY)
        return
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    draft = REGISTRY.with_suffix(".new")
    with draft.open("w") as file:
        yaml.dump({"clusters": {cluster: registry(place, cluster) for cluster in CLUSTERS}}, file)
    _readable(draft)
    draft.replace(REGISTRY)


def _readable(path: Path) -> None:
    """Airflow's user in the containers reads it, whatever the umask here."""
    path.chmod(0o644)
    path.parent.chmod(0o755)


def registry(place: Place, cluster: str) -> dict[str, Any]:
    """The registry's entry; the node's commands are the defaults, those of systemd."""
    checks = ["select count(*) = 1000 from orders", "select bool_and(total > 0) from orders"]
    return {
        "patroni": [f"http://{place.hosts[name]}:{REST_PORT}" for name in CLUSTERS[cluster]],
        "postgres_conn_id": "lab_postgres",
        "ssh_conn_id": "lab_ssh",
        "ssh_host_keys": {name: host_key(name) for name in CLUSTERS[cluster]},
        "node": {"patroni_config": CONFIG},
        "limits": {"lag_bytes": "64MB", "disk_free_percent": 2},
        "adhoc": True,
        "deployments": {
            "good": {"sql": "demo/good.sql", "checks": list(checks)},
            "bad": {"sql": "demo/bad.sql", "checks": list(checks)},
        },
    }


def _ui_passwords(known: dict[str, str]) -> dict[str, str]:
    return {"admin": known["airflow_admin"], "viewer": known["airflow_viewer"]}


def container_environment(place: Place, known: dict[str, str]) -> dict[str, str]:
    """What every Airflow container gets."""
    database = f"airflow:{known['metadata']}@metadata:{POSTGRES_PORT}/airflow"
    values = {
        **airflow_settings(known, f"http://127.0.0.1:{place.port}"),
        "AIRFLOW__CORE__DAGS_FOLDER": "/opt/airflow/dags",
        "AIRFLOW__CORE__PLUGINS_FOLDER": "/opt/airflow/plugins",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor" if place.celery else "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "16",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "http://api-server:8080/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": "/opt/airflow/passwords.json",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database}",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        # with LocalExecutor what a killed scheduler ran is found at this check only
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "AIRFLOW__API__HOST": "0.0.0.0",
        "AIRFLOW__API__PORT": "8080",
        "AIRFLOW_CONN_LAB_POSTGRES": json.dumps(
            {"conn_type": "postgres", "login": "bluegreen", "password": known["bluegreen"], "schema": "app"}
        ),
        "AIRFLOW_CONN_LAB_SSH": json.dumps(
            {
                "conn_type": "ssh",
                "login": SSH_USER,
                "port": SSH_PORT,
                "host": next(iter(place.hosts.values())),
                "extra": {
                    "private_key": (RUN / "client_ed25519").read_text(),
                    "conn_timeout": 5,
                    "no_host_key_check": False,
                    "allow_host_key_change": False,
                },
            }
        ),
        "BLUEGREEN_CLUSTERS": "/opt/airflow/registry/clusters.yaml",
        # Docker gives containers the proxy of its own configuration, which knows none of these
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join((*NEIGHBOURS, *place.hosts.values()))),
    }
    if place.celery:
        values |= {
            "AIRFLOW__CELERY__BROKER_URL": f"redis://:{known['redis']}@redis:6379/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql://{database}",
            "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
        }
    return values


def api_server_environment(known: dict[str, str]) -> dict[str, str]:
    """What the web server alone gets: who may log in."""
    return {"AIRFLOW_UI_PASSWORDS": json.dumps(_ui_passwords(known))}


def _env(values: dict[str, str]) -> str:
    """Lines that both Compose versions read in the same way: no quotes, nothing to expand."""
    for key, value in values.items():
        if "\n" in value or "$" in value or " #" in value:
            raise ValueError(f"{key} cannot be written into an env_file")
    return "".join(f"{key}={value}\n" for key, value in values.items())


def lab_json(place: Place, known: dict[str, str], cluster: str = "orders") -> dict[str, Any]:
    """Where everything of a cluster is, as seen from this machine."""
    nodes = [
        {
            "name": name,
            "host": place.hosts[name],
            "port": POSTGRES_PORT,
            "rest": f"http://{place.hosts[name]}:{REST_PORT}",
            "ssh_port": SSH_PORT,
            "data_dir": f"{RUN}/{name}/postgresql/15/main",
            "patroni_config": f"{RUN}/{name}/patroni/config.yml",
            "socket_dir": "/var/run/postgresql",
            "postgres_log": f"{RUN}/{name}/postgresql/log/postgresql.log",
            "patroni_log": "",
        }
        for name in CLUSTERS[cluster]
    ]
    return {
        "kind": "compose",
        "name": cluster,
        "nodes": nodes,
        "superuser": "postgres",
        "password": known["postgres"],
        "database": "app",
        "users": {user: known[user] for user in USERS},
        "bin_dir": BIN_DIR,
        "server_version": "15",
        "dcs": f"{place.hosts['n1']}:2379",
        "patronictl": "patronictl",
        "ssh_user": SSH_USER,
        "ssh_key": str(RUN / "client_ed25519"),
        "ssh_config": str(RUN / "ssh_config"),
        "ssh_host_keys": {name: host_key(name) for name in CLUSTERS[cluster]},
        "directory": str(RUN),
        "run": str(RUN),
        "archive": None,
        "airflow": f"http://127.0.0.1:{place.port}",
        "leader_port": place.leader_port,
        "replica_port": place.replica_port,
    }
