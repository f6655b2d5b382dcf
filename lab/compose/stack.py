"""A handle on the running stack: its nodes, for tests and the demo, and docker-compose itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import psycopg
from ruamel.yaml import YAML

from lab.cluster import Lab
from lab.compose.files import (
    BIN_DIR,
    CONFIG,
    DATA_DIR,
    ETCD_NODES,
    REGISTRY,
    RUN,
    SSH_PORT,
    Place,
    lab_json,
    load_secrets,
)
from lab.config import CHECKOUT, LabError
from lab.machine import is_free, owner
from lab.standalone import unhealthy

TASKS = ("scheduler", "worker-1", "worker-2")
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
BASE_IMAGE = "bluegreen-base"
NAME = "bluegreen"
PROJECT = f"label=com.docker.compose.project={NAME}"
# the folder from which a container was started, as Compose says, and the one for which a volume was made
FOLDERS = {
    "container": '.Config.Labels "com.docker.compose.project.working_dir"',
    "volume": '.Labels "bluegreen.folder"',
}
WELL = ("running healthy", "exited 0")
IMAGES = ("node", "services", "airflow")
# as long as this file is there systemd does not start a killed Patroni again
NO_RESTART = "/run/systemd/system/patroni.service.d/stays-down.conf"


class CannotRunHere(LabError):
    """This machine cannot run the stack's nodes, whatever is done to the stack."""


def docker(*arguments: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a docker command.

    :raises LabError: when it fails, unless ``check`` is false.
    """
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, input=stdin)
    if check and done.returncode:
        raise LabError(f"docker {' '.join(arguments[:4])} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done


def compose_command() -> list[str]:
    """Compose v2 where Docker has it, else v1.

    :raises LabError: there is neither.
    """
    if docker("compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise LabError("Found neither `docker compose` nor `docker-compose`: please install one of them")


def compose(*arguments: str, profiles: Iterable[str] | None = None) -> None:
    """Run docker-compose on this checkout's file.

    :param profiles: instead of those that were chosen.
    :raises LabError: when it fails; with what it said.
    """
    place = Place.load()
    environment = {**os.environ, **place.environment, "COMPOSE_PROJECT_NAME": NAME}
    environment |= {"BASE": BASE_IMAGE, "FOLDER": str(CHECKOUT)}
    environment["COMPOSE_PROFILES"] = ",".join(place.profiles if profiles is None else profiles)
    command = [*compose_command(), "-f", str(CHECKOUT / "docker-compose.yaml"), *arguments]
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"docker-compose {arguments[0]} ended with {done.returncode}: {said[-1500:]}")


def check_machine() -> None:
    """Try what a node's first process does before systemd: a tree of control groups of its own.

    :raises CannotRunHere: when this machine's Docker does not allow it.
    """
    node = YAML(typ="safe").load(CHECKOUT / "docker-compose.yaml")["x-node"]
    options = ["--rm", "--network", "none"]
    options += [f"--cap-add={one}" for one in node["cap_add"]]
    options += [f"--security-opt={one}" for one in node["security_opt"]]
    script = (
        "if [ -d /sys/fs/cgroup/systemd ]; then umount /sys/fs/cgroup/systemd && "
        "mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd; "
        "else umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup; fi"
    )
    done = docker("run", *options, BASE_IMAGE, "unshare", "--cgroup", "sh", "-c", script, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise CannotRunHere(f"Docker cannot run containers with systemd here ({said}); the profile lab needs that")


def check_ports(place: Place) -> None:
    """See that nobody else listens where the stack publishes, unless it may be the stack itself.

    :raises LabError: when somebody does.
    """
    if _ids("container"):
        return
    ports = {"PORT": place.port}
    ports |= {"LEADER_PORT": place.leader_port, "REPLICA_PORT": place.replica_port} if "lab" in place.profiles else {}
    for name, port in ports.items():
        if not is_free("127.0.0.1", port):
            raise LabError(
                f"127.0.0.1:{port} is in use by {owner('127.0.0.1', port)}, expected it free: give another one, as "
                f"{name}={port + 10}, or end that (the demo's Airflow: make down)"
            )


def build_images() -> None:
    """Build what docker-compose.yaml runs; each image once, though several services share it."""
    for target in IMAGES:
        name = f"bluegreen-{target}"
        network = os.environ.get("BUILD_NETWORK", "host")
        options = ["--network", network, "-f", "compose/Dockerfile", "--target", target, "-t", name]
        options += ["--build-arg", f"BASE={BASE_IMAGE}", *(["--no-cache"] if os.environ.get("REFRESH") else [])]
        done = subprocess.run(["docker", "build", "-q", *options, "."], cwd=CHECKOUT, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"{name} cannot be built: {(done.stderr or done.stdout).strip()[-1500:]}")


def exists() -> bool:
    """Whether Docker has a container or a volume of the project, of whatever checkout."""
    return any(_ids(kind) for kind in ("container", "volume"))


def check_ours(allowed: str = "") -> None:
    """See that no container and no volume of a project of this name is another folder's.

    :param allowed: one more folder whose containers and volumes count as ours.
    :raises LabError: when one is: it is another checkout's, or no bluegreen at all.
    """
    ours = {os.path.realpath(CHECKOUT), os.path.realpath(allowed or CHECKOUT)}
    for kind, where in FOLDERS.items():
        ids = _ids(kind)
        found = docker(kind, "inspect", "--format", f"{{{{index {where}}}}}", *ids).stdout if ids else ""
        if others := {line for line in found.split("\n") if line and os.path.realpath(line) not in ours}:
            other = sorted(others)[0]
            raise LabError(
                f"Docker has {kind}s of a project called {NAME} that was started in {other}, expected none but those "
                f"of {CHECKOUT}: remove it there by make compose-down VOLUMES=1, or from here with FROM={other} too"
            )


def remove(*kinds: str) -> None:
    """Remove what Docker has of the project; containers are given their time to end.

    :param kinds: of ``container``, ``network``, ``volume``; in this order.
    :raises LabError: when it cannot.
    """
    for kind in kinds:
        if ids := _ids(kind):
            if kind == "container":
                stop_containers(ids)
            docker(kind, "rm", *ids)


def stop_containers(ids: Iterable[str]) -> None:
    """Stop containers, those first that run Airflow's tasks: without the web server a task cannot end well."""
    first = {one for name in TASKS for one in _containers_of(name)}
    for together in ([one for one in ids if one in first], [one for one in ids if one not in first]):
        if together:
            docker("stop", *together)


def _ids(kind: str) -> list[str]:
    """Containers of the project's name, and of its networks and volumes those that docker-compose.yaml names."""
    if kind == "container":
        return docker("container", "ls", "--quiet", "--all", "--filter", PROJECT).stdout.split()
    ours = {f"{NAME}_{name}" for name in YAML(typ="safe").load(CHECKOUT / "docker-compose.yaml")[f"{kind}s"]}
    names = docker(kind, "ls", "--format", "{{.Name}}", "--filter", PROJECT).stdout.split()
    return [name for name in names if name in ours]


def remove_unchosen(place: Place) -> None:
    """Remove containers of profiles that are not chosen any more; Compose leaves them running."""
    for service in services() - services(place):
        if found := _containers_of(service):
            stop_containers(found)
            docker("rm", *found)


def services(place: Place | None = None) -> set[str]:
    """The services of docker-compose.yaml.

    :param place: only those of its profiles.
    """
    found = YAML(typ="safe").load(CHECKOUT / "docker-compose.yaml")["services"]
    chosen = {"lab", "celery"} if place is None else set(place.profiles)
    return {name for name, service in found.items() if not service.get("profiles") or chosen & set(service["profiles"])}


def wait_containers(timeout: float = 240) -> None:
    """Wait until Docker calls every chosen container healthy, and the one that migrates has ended well.

    :raises LabError: when one is not in time.
    """
    deadline = time.monotonic() + timeout
    wanted = services(Place.load())
    while missing := {name: state for name, state in _health().items() if name in wanted and state not in WELL}:
        if time.monotonic() > deadline:
            said = ", ".join(f"{name} is {state}" for name, state in sorted(missing.items()))
            raise LabError(f"After {timeout:.0f} s {said}; see {_logs(*missing)}")
        time.sleep(1)


def _health() -> dict[str, str]:
    """What Docker says of each service's container: `running healthy`, `exited 0`, and the like."""
    how = (
        '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} '
        "{{if .State.Health}}{{.State.Health.Status}}"
        "{{else if .State.Running}}unchecked{{else}}{{.State.ExitCode}}{{end}}"
    )
    lines = docker("inspect", "--format", how, *_ids("container")).stdout.splitlines()
    return dict.fromkeys(services(), "not there") | dict(line.split(" ", 1) for line in lines)


def _logs(*services: str) -> str:
    """The commands that show what containers of these services say."""
    return ", ".join(f"docker logs {one[:12]}" for name in sorted(services) for one in _containers_of(name))


def _containers_of(service: str) -> list[str]:
    label = f"label=com.docker.compose.service={service}"
    return docker("ps", "-aq", "--filter", label, "--filter", PROJECT).stdout.split()


def container(service: str) -> str:
    """The id of a service's container.

    :raises LabError: there is none.
    """
    found = _containers_of(service)
    if len(found) != 1:
        raise LabError(f"Found {len(found)} containers of {service}, expected one: make compose-up")
    return found[0]


def psql(node: str, password: str, *options: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run psql in a node's container, over the server's socket, as the superuser."""
    command = f"PGOPTIONS='-c client_min_messages=warning' exec {BIN_DIR}/psql -Xqv ON_ERROR_STOP=1 \"$@\""
    options_of_docker = ["-i", "-u", "postgres", "-e", "PGPASSWORD", "-e", "PGDATABASE=app"]
    return subprocess.run(
        ["docker", "exec", *options_of_docker, container(node), "sh", "-c", command, "psql", *options],
        env={**os.environ, "PGPASSWORD": password},
        input=stdin,
        capture_output=True,
        text=True,
    )


class ComposeLab(Lab):
    """A cluster of docker-compose.yaml, by default ``orders``: containers with systemd."""

    @classmethod
    def of(cls, cluster: str) -> Self:
        """One of its clusters by name; the first state of ``orders`` alone is kept, and with it the DCS of all."""
        return cls.described(lab_json(Place.load(), load_secrets(), cluster))

    def on_node(
        self, name: str, *command: str, user: str = "root", stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a node's container, as nobody but a test may."""
        return docker("exec", "-i", "-u", user, container(name), *command, stdin=stdin, check=check)

    def start_patroni(self, *names: str) -> None:
        """Start Patroni on these members; return at once."""
        for name in names:
            script = f"rm -f {NO_RESTART}; systemctl daemon-reload; systemctl start --no-block patroni"
            self.on_node(name, "sh", "-c", script)

    def stop_patroni(self, *names: str) -> None:
        """Stop Patroni, and with it PostgreSQL, on these members."""
        for name in names:
            self.on_node(name, "systemctl", "stop", "patroni")

    def kill_patroni(self, *names: str) -> None:
        """SIGKILL to Patroni alone, which stays down: PostgreSQL stays."""
        for name in names:
            script = (
                f"mkdir -p {Path(NO_RESTART).parent}; printf '[Service]\\nRestart=no\\n' > {NO_RESTART}; "
                "systemctl daemon-reload; systemctl kill --kill-who=main -s KILL patroni"
            )
            self.on_node(name, "sh", "-c", script)

    def kill_postgres(self, name: str) -> None:
        """SIGKILL to the postmaster: a crash, which Patroni notices."""
        self.on_node(name, "sh", "-c", f"kill -9 $(head -n 1 {DATA_DIR}/postmaster.pid)")

    def writers(self) -> list[str]:
        """The members whose server takes writes, asked inside their containers: also those without a network."""
        query = "select not pg_is_in_recovery()"
        return [name for name in self.nodes if psql(name, self.info["password"], "-Atc", query).stdout.strip() == "t"]

    def postmaster(self, name: str) -> int | None:
        """The pid of PostgreSQL in a member's container, or None."""
        script = f'read -r pid < {DATA_DIR}/postmaster.pid && kill -0 "$pid" && echo "$pid"'
        done = self.on_node(name, "sh", "-c", script, check=False)
        return int(done.stdout) if done.returncode == 0 else None

    def ssh(self, name: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command on this member over SSH, as the owner of the data directory, as sudoers allows it."""
        return subprocess.run(
            ["ssh", "-F", self.info["ssh_config"], name, "sudo -u postgres /bin/sh -s"],
            capture_output=True,
            text=True,
            timeout=timeout,
            input=self.there(name, command),
        )

    def there(self, name: str, text: str) -> str:
        """A text with this member's paths as its container knows them."""
        member = self.nodes[name]
        return text.replace(str(member.data_dir), DATA_DIR).replace(str(member.patroni_config), CONFIG)

    def patronictl(self, *arguments: str, node: str = "n1", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run patronictl on a member."""
        return self.on_node(node, "patronictl", "-c", CONFIG, *arguments, user="postgres", stdin=stdin, check=False)

    def where_to_look(self) -> str:
        """Where a person finds what is wrong, and what helps."""
        found = [one[:12] for name in self.nodes for one in _containers_of(name)]
        logs = ", ".join(f"docker exec {one} journalctl -u patroni" for one in found)
        return f"{logs} say why; make compose-down VOLUMES=1 and make compose-up begin anew, without its data"

    def wait_leader(self, timeout: float = 60) -> str:
        """Wait until a member answers as the leader; return its name.

        :raises LabError: there is none in time.
        """
        deadline = time.monotonic() + timeout
        while not (found := self.leader()):
            if time.monotonic() > deadline:
                raise LabError(f"No leader after {timeout:.0f} s; `docker exec` a node and see journalctl -u patroni")
            time.sleep(0.1)
        return found

    def cut(self, name: str) -> None:
        """Take a node's network away: nobody reaches it, and it reaches nobody."""
        docker("network", "disconnect", f"{NAME}_cluster", container(name))

    def join(self, name: str) -> None:
        """Give a node its network back, with the same address."""
        docker("network", "connect", "--ip", self.nodes[name].host, f"{NAME}_cluster", container(name))

    def cut_between(self, one: str, other: str) -> None:
        """Take the way between two nodes away; everybody else reaches both."""
        self._blackhole("add", one, other)

    def join_between(self, one: str, other: str) -> None:
        """Give two nodes their way back."""
        self._blackhole("del", one, other)

    def _blackhole(self, action: str, one: str, other: str) -> None:
        """Change the routes of a node by a container that shares its network, since the node itself may not."""
        within = ("--network", f"container:{container(one)}", "--cap-add", "NET_ADMIN", "--entrypoint", "ip")
        docker("run", "--rm", *within, "bluegreen-node", "route", action, "blackhole", self.nodes[other].host)

    def reaches(self, name: str, other: str) -> bool:
        """Whether a node reaches another one's sshd, as a program in its container sees it."""
        script = f"timeout 2 bash -c '</dev/tcp/{self.nodes[other].host}/{SSH_PORT}'"
        return self.on_node(name, "sh", "-c", script, check=False).returncode == 0

    def snapshot(self, name: str) -> None:
        """Stop the nodes, keep their folders, start them again."""
        target = RUN / "snapshots" / name
        self._stop(gently=True)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for node, part in self._parts():
            _copy(RUN / node / part, target / node / part)
        self._start()

    def reset(self, name: str) -> float:
        """Throw the present state of all nodes away for the kept one; return the seconds until it is healthy."""
        begin = time.monotonic()
        source = RUN / "snapshots" / name
        if not source.exists():
            raise LabError(f"There is no snapshot {name} in {source.parent}")
        self._stop(gently=False)
        self._join_all()
        for node, part in self._parts():
            for path in (RUN / node / part).iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            _copy(source / node / part, RUN / node / part)
        self._start()
        return time.monotonic() - begin

    def _parts(self) -> list[tuple[str, str]]:
        parts = [(node, part) for node in self.nodes for part in ("patroni", "postgresql")]
        return parts + [(node, "etcd") for node in ETCD_NODES]

    def _stop(self, *, gently: bool) -> None:
        if gently:
            leader = self.leader()
            self.stop_patroni(*(name for name in self.nodes if name != leader), *([leader] if leader else []))
        docker("kill", *(container(name) for name in self.nodes), check=False)

    def _join_all(self) -> None:
        """Give every node its network back that a test has left cut off."""
        how = f'{{{{if index .NetworkSettings.Networks "{NAME}_cluster"}}}}there{{{{end}}}}'
        for name in self.nodes:
            if not docker("inspect", "--format", how, container(name)).stdout.strip():
                self.join(name)

    def _start(self) -> None:
        docker("start", *(container(name) for name in self.nodes))
        deadline = time.monotonic() + 90
        while True:
            self.wait_healthy(90)
            # Patroni calls it the leader some time before it takes writes.
            leader = self.leader()
            with contextlib.suppress(psycopg.Error):
                if leader and self.value(leader, "show transaction_read_only", database="postgres") == "off":
                    return
            if time.monotonic() > deadline:
                raise LabError(f"After 90 s {leader} does not take writes; see journalctl -u patroni in its container")
            time.sleep(0.3)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["cp", "-a", "--reflink=auto", f"{source}/.", str(target)], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"cp -a {source} failed: {done.stderr.strip()[-500:]}")


class ComposeAirflow:
    """The Airflow of docker-compose.yaml, as far as tests start and stop it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.environment = {"BLUEGREEN_CLUSTERS": str(REGISTRY)}

    def stop(self) -> bool:
        """Stop every component; tasks that run are waited for."""
        stop_containers(self._containers())
        return True

    def start(self) -> None:
        """Start every component, and wait until all are healthy."""
        docker("start", *self._containers())
        wait_airflow(Place.load())

    def _containers(self) -> list[str]:
        workers = ["worker-1", "worker-2"] if Place.load().celery else []
        return [container(name) for name in (*COMPONENTS, *workers)]


def wait_airflow(place: Place, timeout: float = 240) -> None:
    """Wait until every component is healthy.

    :raises LabError: when one is not in time.
    """
    deadline = time.monotonic() + timeout
    while missing := unhealthy(f"http://127.0.0.1:{place.port}"):
        if time.monotonic() > deadline:
            logs = _logs(*(name for name in COMPONENTS if name.replace("-", "_") in missing or name == "api-server"))
            raise LabError(f"Airflow: not healthy after {timeout:.0f} s: {', '.join(missing)}; see {logs}")
        time.sleep(1)
