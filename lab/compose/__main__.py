"""python -m lab.compose up | fresh | check | demo | down [--volumes]: the stack of docker-compose.yaml."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time

import httpx
import psycopg
from rich.console import Console

from lab.compose import stack
from lab.compose.files import BIN_DIR, CLUSTERS, RUN, Place, load_secrets, write_all
from lab.config import CHECKOUT, LabError
from lab.lifecycle import FRESH, create_roles

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run one verb; a LabError is a sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m lab.compose", description="The stack of docker-compose.yaml.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="make the secrets, build, start, wait until all is healthy")
    verbs.add_parser("check", help="see whether this machine can run its nodes")
    verbs.add_parser("demo", help="two deployments while a client writes through HAProxy")
    verbs.add_parser("fresh", help="remove it, start it from nothing, and keep its first state for the tests")
    down = verbs.add_parser("down", help="stop it")
    down.add_argument("--volumes", action="store_true", help="and remove all data, keys and secrets")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "up":
            up()
        elif arguments.verb == "fresh":
            down_all(volumes=True)
            up()
            stack.ComposeLab.load(RUN).snapshot(FRESH)
        elif arguments.verb == "check":
            stack.check_machine()
        elif arguments.verb == "down":
            down_all(volumes=arguments.volumes)
        else:
            from lab.compose import demo

            return demo.main()
    except LabError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"compose: {error}", markup=False)
        return 1
    return 0


def up() -> None:
    """Start everything and wait until it is healthy."""
    begin = time.monotonic()
    place = Place.load()
    write_all(place)
    if "lab" in place.profiles:
        stack.check_machine()
    console.print("Building the images")
    stack.build_images()
    console.print("Starting the containers")
    stack.compose("up", "-d", "--no-build")
    if "lab" in place.profiles:
        for cluster, nodes in CLUSTERS.items():
            prepare_cluster(cluster, list(nodes))
        stack.ComposeLab.load(RUN).wait_healthy(60)
    stack.wait_airflow(place)
    console.print(
        f"Healthy after {time.monotonic() - begin:.0f} s\n"
        f"Airflow: http://127.0.0.1:{place.port}, user admin, password in {RUN}/passwords.json",
        markup=False,
    )
    if "lab" in place.profiles:
        console.print(
            f"HAProxy: leader of orders 127.0.0.1:{place.leader_port}, its replicas 127.0.0.1:{place.replica_port}"
        )


def prepare_cluster(cluster: str, nodes: list[str], timeout: float = 180) -> None:
    """Wait for its leader, and give it the database, the roles and exactly the rights of grants.sql."""
    known, place = load_secrets(), Place.load()
    deadline = time.monotonic() + timeout
    while True:
        leader = next((name for name in nodes if _leads(place.hosts[name])), None)
        if leader:
            break
        if time.monotonic() > deadline:
            raise LabError(
                f"{cluster} has no leader after {timeout:.0f} s; see journalctl -u patroni in its containers"
            )
        time.sleep(0.5)
    with psycopg.connect(
        host=place.hosts[leader], user="postgres", password=known["postgres"], dbname="postgres", autocommit=True
    ) as connection:
        create_roles(connection, known)
    grants = (CHECKOUT / "include" / "sql" / "grants.sql").read_text()
    command = f"PGOPTIONS='-c client_min_messages=warning' exec {BIN_DIR}/psql -Xqv ON_ERROR_STOP=1 -v role=bluegreen"
    options_of_docker = ["-i", "-u", "postgres", "-e", "PGPASSWORD", "-e", "PGDATABASE=app"]
    done = subprocess.run(
        ["docker", "exec", *options_of_docker, stack.container(leader), "sh", "-c", command],
        env={**os.environ, "PGPASSWORD": known["postgres"]},
        input=grants,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise LabError(f"grants.sql failed on {leader}: {done.stderr.strip()[-500:]}")


def _leads(host: str) -> bool:
    try:
        return httpx.get(f"http://{host}:8008/primary", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def down_all(*, volumes: bool) -> None:
    """Stop everything, whatever profile it was started with."""
    if not (RUN / "airflow.env").exists():
        console.print("There is no stack")
        return
    stack.compose("down", *(["--volumes"] if volumes else []), profiles=["lab", "celery"])
    if volumes:
        # what the nodes have written belongs to users of theirs
        mount = f"{RUN}:/run-folder"
        stack.docker(
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "find",
            "-v",
            mount,
            "bluegreen-node",
            "/run-folder",
            "-mindepth",
            "1",
            "-delete",
        )
        shutil.rmtree(RUN, ignore_errors=True)
        console.print("Removed all its data, keys and secrets")


if __name__ == "__main__":
    sys.exit(main())
