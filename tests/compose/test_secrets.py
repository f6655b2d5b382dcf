"""No secret in a log, in Airflow's database, in a command line, or in a file that others may read."""

from __future__ import annotations

import subprocess

from lab.compose.files import RUN, Place, load_secrets
from lab.compose.stack import ComposeLab, container, docker, services
from tests.cluster.scene import Scene
from tests.cluster.test_secrets import watched_command_lines

# what others may read of the files that were written since the container was made; the logs are searched by themselves
READABLE = (
    "find / '(' -path /proc -o -path /sys -o -path /opt/airflow/logs ')' -prune "
    '-o -type f -perm -o=r -newermt "$1" -print0 2>/dev/null | xargs -0 cat 2>/dev/null'
)


def marks() -> dict[str, bytes]:
    """Every generated secret is random, so each is its own mark."""
    found = {f"password of {name}": value for name, value in load_secrets().items()}
    found["SSH key"] = max((RUN / "client_ed25519").read_text().splitlines(), key=len)
    assert all(len(value) >= 32 for value in found.values())
    return {name: value.encode() for name, value in found.items()}


def printed(*command: str) -> bytes:
    done = subprocess.run(["docker", *command], capture_output=True, timeout=300)
    return done.stdout + done.stderr


def test_the_watch_sees_into_the_containers(clean: Scene) -> None:
    leaks: set[str] = set()
    with watched_command_lines({"mark": b"3.0625"}, leaks):
        docker("exec", container(clean.lab.names[0]), "sleep", "3.0625")
    assert any("b'sleep" in leak for leak in leaks), leaks


def test_no_secret_is_left_anywhere(scene: Scene) -> None:
    lab = scene.lab
    assert isinstance(lab, ComposeLab)
    secrets, leaks = marks(), set[str]()
    with watched_command_lines(secrets, leaks) as looks:
        scene.checkpoint()
        scene.deploy_badly()
        scene.rollback(rejoin="rewind")
        scene.refused("rollback", checkpoint="bg_gone", confirm=lab.name, reason="a failing task logs too")
    assert looks[0] > 50, "the command lines were hardly looked at"

    texts = {f"docker logs {name}": printed("logs", container(name)) for name in services(Place.load())}
    texts["Airflow's logs"] = printed("exec", container("api-server"), "tar", "-C", "/opt/airflow/logs", "-c", ".")
    dump = "PGPASSWORD=$METADATA_PASSWORD exec pg_dump -h 127.0.0.1 -U airflow airflow"
    texts["Airflow's database"] = printed("exec", container("metadata"), "sh", "-c", dump)
    for name in services(Place.load()) - {"init"}:
        made = docker("inspect", "--format", "{{.Created}}", container(name)).stdout.strip()
        command = ("sh", "-c", READABLE, "sh", made)
        texts[f"readable files of {name}"] = printed("exec", "-u", "root", container(name), *command)
    for name in lab.names:
        texts[f"journal of {name}"] = printed("exec", container(name), "journalctl", "--no-pager", "-o", "cat")
        texts[f"log of the server of {name}"] = printed(
            "exec", container(name), "sh", "-c", "cat /var/lib/postgresql/log/*"
        )
    # each has at least what Docker writes into it, its own name
    least = {"docker": 0, "readable": 100}
    short = {name: len(text) for name, text in texts.items() if len(text) <= least.get(name.split()[0], 1000)}
    assert not {name for name in short if not name.startswith("docker")}, short
    for where, text in texts.items():
        leaks |= {f"{name} in {where}" for name, value in secrets.items() if value in text}
    assert not leaks, "\n".join(sorted(leaks))
