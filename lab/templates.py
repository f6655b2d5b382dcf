"""The text of every configuration file of the lab: settings in, text out."""

from __future__ import annotations

import shlex
from pathlib import Path

from lab.config import ETCD_PEER_PORT, POSTGRES_PORT, REST_PORT, SSH_PORT, Node, Settings

# PostgreSQL's own words for the bytes of WAL that one old segment of 16 MB had
WAL_KEEP_MB = 128


def patroni_yaml(settings: Settings, node: Node, secrets: dict[str, str]) -> str:
    """Patroni's configuration of one member, commented as people comment theirs."""
    # before 14 initdb makes md5 secrets by default
    auth = "scram-sha-256" if settings.server_number >= 140000 else "md5"
    host, gap = ("hostssl", "  ") if settings.tls else ("host ", "")
    client = f"sslmode: verify-full\nsslrootcert: {settings.tls_dir}/postgres_ca.pem" if settings.tls else ""
    return f"""\
# Patroni on {node.name}, a member of the lab's cluster "{settings.name}".
# Everything that is the same on all members is in the dynamic configuration:
#   patronictl -c {node.patroni_config} edit-config

scope: {settings.name}
namespace: /service/
name: {node.name}

restapi:
  listen: {node.host}:{REST_PORT}
  connect_address: {node.host}:{REST_PORT}
{_rest_tls(settings, node, secrets)}
etcd3:
  hosts:
  - {settings.dcs}

# read once, when the cluster is created; later changes go through edit-config
bootstrap:
  dcs:
    # a small cluster on one machine: notice and act quickly
    ttl: 20
    loop_wait: 5
    retry_timeout: 5
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
{_indent(8, _dynamic_parameters(settings))}\
{_indent(6, _recovery_conf(settings))}\
  initdb:
  - encoding: UTF8
  - locale: C.UTF-8
{"  - data-checksums" if settings.checksums else "  # no data checksums: pg_rewind then needs wal_log_hints"}

postgresql:
  listen: {node.host}:{POSTGRES_PORT}
  connect_address: {node.host}:{POSTGRES_PORT}
  data_dir: {node.data_dir}
  bin_dir: {settings.bin_dir}
  pgpass: {node.directory}/pgpass
  authentication:
    superuser:
      username: postgres
      password: {secrets["postgres"]}
{_indent(6, client)}\
    replication:
      username: replicator
      password: {secrets["replicator"]}
{_indent(6, client)}\
    rewind:  # 11 and newer; before, Patroni uses the superuser
      username: rewind_user
      password: {secrets["rewind_user"]}
{_indent(6, client)}\
  parameters:
    # this member's own
    unix_socket_directories: {_socket_dir(settings, node)}
    logging_collector: "on"
    log_directory: {node.directory}/log
    log_filename: postgresql.log
    log_file_mode: "0600"
    log_line_prefix: "%m [%p] "
{_indent(4, _server_tls(settings, node))}\
  basebackup:
  - checkpoint: fast  # a copy begins at once, not after a checkpoint spread over minutes
  pg_hba:
  - local {gap}all         all        {auth}
  - {host} all         all        127.0.0.0/8 {auth}
  - {host} replication replicator 127.0.0.0/8 {auth}

tags:
  nofailover: false   # every member may become the leader
  noloadbalance: false
  clonefrom: false
  nosync: false
"""


def _rest_tls(settings: Settings, node: Node, secrets: dict[str, str]) -> str:
    """TLS of the REST API, and how patronictl and the other members speak to it."""
    if not settings.tls:
        return ""
    own = f"{settings.tls_dir}/{node.name}_patroni"
    return f"""\
  certfile: {own}.pem
  keyfile: {own}.key
  cafile: {settings.tls_dir}/patroni_ca.pem
  verify_client: required
  authentication:
    username: patroni
    password: {secrets["patroni"]}

ctl:
  cacert: {settings.tls_dir}/patroni_ca.pem
  certfile: {own}.pem
  keyfile: {own}.key
"""


def _server_tls(settings: Settings, node: Node) -> str:
    if not settings.tls:
        return ""
    own = f"{settings.tls_dir}/{node.name}_postgres"
    return f'ssl: "on"\nssl_cert_file: {own}.pem\nssl_key_file: {own}.key'


def _dynamic_parameters(settings: Settings) -> str:
    keep = (
        f"wal_keep_size: {WAL_KEEP_MB}MB"
        if settings.server_number >= 130000
        else f"wal_keep_segments: {WAL_KEEP_MB // 16}"
    )
    lines = [
        "shared_buffers: 32MB",
        "max_connections: 50",
        "max_wal_size: 256MB",
        keep,
        f'wal_log_hints: "{"on" if settings.wal_log_hints else "off"}"',
        'hot_standby: "on"',
        f"max_wal_senders: {settings.size + 7}",
        f"max_replication_slots: {settings.size + 7}",
    ]
    if settings.archive:
        archive = shlex.quote(str(settings.directory / "archive")).replace('"', '\\"')
        lines += [
            'archive_mode: "on"',
            f'archive_command: "test ! -f {archive}/%f && cp %p {archive}/%f"',
        ]
    return "\n".join(lines)


def _recovery_conf(settings: Settings) -> str:
    if not settings.archive:
        return ""
    archive = shlex.quote(str(settings.directory / "archive")).replace('"', '\\"')
    return f'recovery_conf:\n  restore_command: "cp {archive}/%f %p"'


def _socket_dir(settings: Settings, node: Node) -> Path:
    return settings.socket_dir / node.name


def _indent(width: int, text: str) -> str:
    return "".join(f"{' ' * width}{line}\n" for line in text.splitlines())


def sshd_config(settings: Settings, node: Node) -> str:
    """The SSH server of one member; it runs as the lab's user and lets in nobody else."""
    folder = settings.directory / "ssh"
    # a command that comes over SSH needs the same libraries as one that Patroni runs
    library = f"SetEnv LD_LIBRARY_PATH={settings.lib_dir}\n" if settings.lib_dir else ""
    return f"""\
# SSH on {node.name}, for one user and one key
ListenAddress {node.host}
Port {SSH_PORT}
HostKey {folder}/{node.name}_host_ed25519
PidFile none
AllowUsers {settings.user.pw_name}
AuthorizedKeysFile {folder}/authorized_keys
# only a server that runs as root can ask PAM or be strict about other people's folders
UsePAM no
StrictModes no
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100:30:200
MaxSessions 100
UseDNS no
PrintMotd no
X11Forwarding no
AllowTcpForwarding no
Subsystem sftp internal-sftp
{library}"""


def ssh_config(settings: Settings) -> str:
    """A client configuration, so that `ssh -F lab/run/ssh_config n1` works."""
    hosts = "".join(f"Host {node.name}\n  HostName {node.host}\n\n" for node in settings.nodes)
    return f"""\
{hosts}Host *
  User {settings.user.pw_name}
  Port {SSH_PORT}
  IdentityFile {settings.run}/client_ed25519
  IdentitiesOnly yes
  UserKnownHostsFile {settings.run}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
  LogLevel ERROR
"""


def etcd_command(settings: Settings, etcd: Path) -> str:
    """The command line of the DCS: one member, which elects itself at once."""
    client = f"http://{settings.dcs}"
    peer = f"http://{settings.etcd_host}:{ETCD_PEER_PORT}"
    options = {
        "name": "lab",
        "data-dir": settings.directory / "etcd",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"lab={peer}",
        "heartbeat-interval": 10,
        "election-timeout": 100,
        "log-outputs": "stderr",
    }
    return shlex.join([str(etcd), *(f"--{key}={value}" for key, value in options.items())])


def supervisord_conf(settings: Settings, etcd: Path, sshd: Path) -> str:
    """The process manager's configuration: etcd, and per member an SSH server and Patroni."""
    log = settings.directory / "log"
    environment = ",".join(f'{key}="{value}"' for key, value in settings.environment.items())
    parts = [
        f"""\
[unix_http_server]
file = {settings.supervisor_socket}
chmod = 0700

[supervisord]
directory = {settings.directory}
logfile = {log}/supervisord.log
pidfile = {settings.directory}/supervisord.pid
childlogdir = {log}
umask = 077

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{settings.supervisor_socket}
""",
        _program(
            "etcd",
            etcd_command(settings, etcd),
            f'environment = ETCD_UNSUPPORTED_ARCH="arm64"\nautorestart = true\nstdout_logfile = {log}/etcd.log',
        ),
    ]
    for node in settings.nodes:
        parts.append(
            _program(
                node.sshd,
                shlex.join([str(sshd), "-D", "-e", "-f", str(settings.directory / "ssh" / f"{node.name}.conf")]),
                f"autorestart = true\nstdout_logfile = {log}/{node.sshd}.log",
            )
        )
        # As Patroni's own systemd unit: no restart, and the signal goes to Patroni alone, which stops PostgreSQL.
        parts.append(
            _program(
                node.program,
                shlex.join([str(settings.venv / "bin" / "patroni"), str(node.patroni_config)]),
                f"""\
environment = {environment}
autostart = false
autorestart = false
startsecs = 0
stopasgroup = false
killasgroup = false
stopwaitsecs = 60
stdout_logfile = {log}/{node.program}.log""",
            )
        )
    return "\n".join(parts)


def _program(name: str, command: str, rest: str) -> str:
    return f"""\
[program:{name}]
command = {command.replace("%", "%%")}
redirect_stderr = true
{rest}
"""


def ctl_script(settings: Settings) -> str:
    """The start, stop and status commands of the registry."""
    supervisorctl = shlex.join([str(settings.venv / "bin" / "supervisorctl"), "-c", str(settings.supervisord_conf)])
    return f"""\
#!/bin/sh
# ctl start|stop|status MEMBER: Patroni's service on one member, with systemctl's exit codes.
# What counts is whether it runs afterwards, not whether there was something to do.
set -eu
ctl="{supervisorctl}"
case "$1" in
    start | stop) $ctl "$1" "patroni-$2"; $ctl status "patroni-$2" >/dev/null && up=yes || up=no
        case "$1:$up" in start:yes | stop:no) exit 0 ;; esac
        exit 1 ;;
    status) $ctl status "patroni-$2" ;;
    *) echo "usage: $0 start|stop|status MEMBER" >&2; exit 2 ;;
esac
"""
