"""docker-compose.yaml and what is generated for it, without Docker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.compose import files, stack
from lab.compose.files import Place
from lab.config import CHECKOUT, LabError
from ruamel.yaml import YAML

from bluegreen.clusters import load_registry

PLACE = Place("172.30.77", 8080, 5000, 5001, ("lab", "celery"))
AIRFLOW = ("init", "api-server", "scheduler", "dag-processor", "triggerer", "maintenance", "worker-1", "worker-2")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(CHECKOUT / "docker-compose.yaml")["services"]
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with nothing but the file, and compose/run in it; the caller keeps its files to itself."""
    shutil.copy(CHECKOUT / "docker-compose.yaml", tmp_path)
    run = tmp_path / "compose" / "run"
    run.parent.mkdir()
    monkeypatch.setattr(files, "RUN", run)
    monkeypatch.setattr(files, "REGISTRY", run / "registry" / "clusters.yaml")
    before = os.umask(0o077)
    yield tmp_path
    os.umask(before)


def test_every_service_has_a_health_check(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if not service.get("healthcheck", {}).get("test")} == {"init"}


def test_every_port_is_on_loopback(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not any(service.get("network_mode") for service in services.values())


@pytest.mark.parametrize("name", AIRFLOW)
def test_plugins_dags_and_include_are_everywhere(services: dict[str, Any], name: str) -> None:
    mounted = {one.split(":")[1]: one.split(":")[2:] for one in services[name]["volumes"]}
    for folder in ("dags", "plugins", "include", "registry"):
        assert mounted[f"/opt/airflow/{folder}"] == ["ro"]


def test_the_profiles_choose() -> None:
    nodes, workers = {"n1", "n2", "n3", "m1", "m2", "haproxy"}, {"redis", "worker-1", "worker-2"}
    plain = stack.services(Place("172.30.77", 8080, 5000, 5001, ()))
    assert plain == {"metadata", "init", "api-server", "scheduler", "dag-processor", "triggerer", "maintenance"}
    assert stack.services(Place("172.30.77", 8080, 5000, 5001, ("lab",))) == plain | nodes
    assert stack.services(PLACE) == stack.services() == plain | nodes | workers


def test_secrets_are_made_once_and_are_nobodys_default(project: Path) -> None:
    files.write_all(PLACE)
    first = files.load_secrets()
    files.write_all(PLACE)
    assert files.load_secrets() == first
    assert len(set(first.values())) == len(first)
    assert all(len(value) >= 32 for value in first.values())
    shutil.rmtree(files.RUN)
    files.write_all(PLACE)
    assert not set(first.values()) & set(files.load_secrets().values())


def test_only_the_registry_may_be_read_by_others(project: Path) -> None:
    files.write_all(PLACE)
    assert files.RUN.stat().st_mode & 0o777 == 0o700
    for path in files.RUN.rglob("*"):
        if path.is_file() and path != files.REGISTRY and path.suffix != ".pub":
            assert path.stat().st_mode & 0o077 == 0, path
    assert files.REGISTRY.stat().st_mode & 0o777 == 0o644
    assert files.REGISTRY.parent.stat().st_mode & 0o777 == 0o755
    registry = load_registry(files.REGISTRY)
    assert (sorted(registry.clusters), registry.broken) == (["billing", "orders"], {})
    text = files.REGISTRY.read_text()
    assert not any(value in text for value in files.load_secrets().values())


def test_what_is_generated_is_never_in_git() -> None:
    kept = ["compose/run/secrets.json", "compose/run/airflow.env", "compose/run/n1/seed/ssh_host_ed25519_key"]
    done = subprocess.run(["git", "check-ignore", *kept], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.split() == kept


def test_the_executor_is_local_unless_celery_is_chosen(project: Path) -> None:
    files.RUN.mkdir()
    known = files.load_secrets()
    files._key(files.RUN / "client_ed25519", "")
    chosen = {
        profiles: files.container_environment(Place("172.30.77", 8080, 5000, 5001, profiles), known)
        for profiles in (("lab",), ("lab", "celery"))
    }
    assert [one["AIRFLOW__CORE__EXECUTOR"] for one in chosen.values()] == ["LocalExecutor", "CeleryExecutor"]


def test_nodes_with_data_keep_their_network(project: Path) -> None:
    files.write_all(PLACE)
    other = Place("172.30.78", 8080, 5000, 5001, ("lab",))
    files.write_all(other)
    (files.RUN / "n1" / "patroni" / ".seeded").touch()
    with pytest.raises(LabError, match=r"SUBNET=172\.30\.77: the nodes were made for 172\.30\.78"):
        files.write_all(PLACE)
    assert json.loads((files.RUN / "place.json").read_text())["SUBNET"] == "172.30.78"


def test_what_tasks_run_in_knows_no_password_of_the_ui(project: Path) -> None:
    files.write_all(PLACE)
    known = files.load_secrets()
    everywhere = (files.RUN / "airflow.env").read_text()
    assert known["airflow_admin"] in (files.RUN / "api-server.env").read_text()
    assert not any(known[name] in everywhere for name in ("airflow_admin", "airflow_viewer"))


def test_what_is_mounted_and_cannot_be_read_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHECKOUT", project)
    monkeypatch.setattr(files, "MOUNTED", ("dags",))
    folder = project / "dags" / "more"
    folder.mkdir(parents=True)
    (folder / "one.py").touch()
    with pytest.raises(LabError, match=r"dags may be read by its owner alone.*chmod -R go\+rX dags"):
        files.check_readable()
    subprocess.run(["chmod", "-R", "go+rX", str(project / "dags")], check=True)
    files.check_readable()
    (folder / "one.py").chmod(0o600)
    with pytest.raises(LabError, match=r"one\.py may be read by its owner alone"):
        files.check_readable()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What Docker answers: folders of containers, names of volumes."""
    has: dict[str, list[str]] = {"folders": [], "volume": [], "made for": []}

    def docker(*arguments: str, **_: Any) -> subprocess.CompletedProcess[str]:
        kind, what = arguments[:2]
        listed = {"container": ["an-id"] * bool(has["folders"]), "volume": has["volume"]}[kind]
        found = listed if what == "ls" else has["folders" if kind == "container" else "made for"]
        return subprocess.CompletedProcess(arguments, 0, "\n".join(found) + "\n", "")

    monkeypatch.setattr(stack, "docker", docker)
    return has


def test_what_another_folder_has_started_is_left_alone(engine: dict[str, list[str]], tmp_path: Path) -> None:
    stack.check_ours()
    engine["folders"] = [str(CHECKOUT), str(CHECKOUT)]
    stack.check_ours()
    engine["folders"].append(str(tmp_path))
    with pytest.raises(LabError, match=f"was started in {tmp_path}, expected none but those of"):
        stack.check_ours()
    stack.check_ours(str(tmp_path))

    engine |= {"folders": [], "volume": ["bluegreen_metadata", "bluegreen_pictures"], "made for": [str(CHECKOUT)]}
    stack.check_ours()
    engine["made for"] = [str(tmp_path)]
    with pytest.raises(LabError, match=f"has volumes of a project called bluegreen that was started in {tmp_path}"):
        stack.check_ours()
    stack.check_ours(str(tmp_path))


def test_only_volumes_of_the_file_are_removed(engine: dict[str, list[str]]) -> None:
    engine["volume"] = ["bluegreen_metadata", "bluegreen_pictures", "bluegreen_queue"]
    assert stack._ids("volume") == ["bluegreen_metadata", "bluegreen_queue"]


@pytest.mark.parametrize("command", [["docker", "compose"], ["docker-compose"]], ids=["v2", "v1"])
def test_each_compose_reads_the_same(project: Path, command: list[str]) -> None:
    """What a container gets, above all the generated environment, whose quotes v1 and v2 read differently."""
    if not shutil.which(command[0]) or subprocess.run([*command, "version"], capture_output=True).returncode:
        pytest.skip(f"needs {' '.join(command)}")
    files.write_all(PLACE)
    known = files.load_secrets()
    expected = files.container_environment(PLACE, known)
    environment = {**os.environ, **PLACE.environment, "COMPOSE_PROFILES": "lab,celery"}
    line = [*command, "-f", str(project / "docker-compose.yaml"), "config"]
    done = subprocess.run(line, env=environment, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = YAML(typ="safe").load(done.stdout)
    assert set(config["services"]) == stack.services()
    for name in AIRFLOW:
        # both print a dollar sign twice
        got = {key: str(value).replace("$$", "$") for key, value in config["services"][name]["environment"].items()}
        own = {"api-server": files.api_server_environment(known), "maintenance": {"KEEP_DAYS": "30"}}
        assert got == expected | own.get(name, {})
