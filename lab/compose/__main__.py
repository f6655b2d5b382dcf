"""python -m lab.compose up | fresh | check | demo | down [--volumes]: the stack of docker-compose.yaml."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator

import httpx
import psycopg
from rich.console import Console

from lab.compose import stack
from lab.compose.files import CLUSTERS, ENV_FILES, RUN, Place, load_secrets, write_all
from lab.config import CHECKOUT, LabError
from lab.lifecycle import FRESH, create_roles

# a stack with this file is one that the tests may throw away
TESTS = RUN / "made-by-tests"
console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run one verb; a LabError is a sentence and exit code 1, or 3 where this machine cannot run the nodes."""
    parser = argparse.ArgumentParser(prog="python -m lab.compose", description="The stack of docker-compose.yaml.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("up", help="make the secrets, build, start, wait until all is healthy")
    start.add_argument("--tests", action="store_true", help="go on letting the tests throw it away")
    verbs.add_parser("check", help="see whether this machine can run its nodes")
    verbs.add_parser("demo", help="two deployments while a client writes through HAProxy")
    verbs.add_parser("fresh", help="remove it, start it from nothing, and keep its first state for the tests")
    down = verbs.add_parser("down", help="stop it")
    down.add_argument("--volumes", action="store_true", help="and remove all data, keys and secrets")
    down.add_argument("--from", dest="folder", default="", help="also one that was started from this other folder")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "check":
            stack.check_machine()
        elif arguments.verb == "demo":
            from lab.compose import demo

            return demo.main()
        else:
            with alone():
                if arguments.verb == "up":
                    up(tests=arguments.tests)
                elif arguments.verb == "fresh":
                    fresh()
                else:
                    down_all(volumes=arguments.volumes, folder=arguments.folder)
    except LabError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"compose: {error}", markup=False)
        return 3 if isinstance(error, stack.CannotRunHere) else 1
    return 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one call at a time change the stack; others wait."""
    with (CHECKOUT / "docker-compose.yaml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fresh() -> None:
    """Start the stack from nothing, for the tests, and keep its first state.

    :raises LabError: there is one that no test has made: its data are somebody's; or the caller is not root.
    """
    if os.getuid():
        raise LabError("The tests keep the first state of the nodes, which root alone can read: run them as root")
    stack.check_ours()
    if stack.exists() and not TESTS.exists():
        raise LabError(
            "There is a stack already, and the tests begin from nothing: make compose-down VOLUMES=1 ends it"
        )
    down_all(volumes=True)
    RUN.mkdir(mode=0o700)
    TESTS.touch()
    up(tests=True)
    stack.ComposeLab.load(RUN).snapshot(FRESH)


def up(*, tests: bool = False) -> None:
    """Start everything and wait until it is healthy.

    :param tests: the tests may go on throwing it away; else it is its caller's from now on.
    :raises LabError: when something is not in time, compose/run belongs to another network, or Docker runs the stack
        of another folder.
    """
    begin = time.monotonic()
    place = Place.load()
    stack.check_ours()
    write_all(place)
    if not tests:
        TESTS.unlink(missing_ok=True)
    if "lab" in place.profiles:
        stack.check_machine()
    stack.check_ports(place)
    console.print("Building the images")
    stack.build_images()
    console.print("Starting the containers")
    stack.remove_unchosen(place)
    stack.compose("up", "-d", "--no-build")
    if "lab" in place.profiles:
        for cluster, nodes in CLUSTERS.items():
            prepare_cluster(cluster, list(nodes))
        stack.ComposeLab.load(RUN).wait_healthy(60)
    stack.wait_airflow(place)
    stack.wait_containers()
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
    done = stack.psql(leader, known["postgres"], "-v", "role=bluegreen", stdin=grants)
    if done.returncode:
        raise LabError(f"grants.sql failed on {leader}: {done.stderr.strip()[-500:]}")


def _leads(host: str) -> bool:
    try:
        return httpx.get(f"http://{host}:8008/primary", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def down_all(*, volumes: bool, folder: str = "") -> None:
    """Stop everything of the project, whatever profile it was started with; tasks get ten minutes to end.

    :param volumes: and remove all its data, keys and secrets.
    :param folder: what was started from this other folder too; its secrets stay there.
    :raises LabError: when something could not be stopped or removed, or is another folder's.
    """
    stack.check_ours(folder)
    # also one that an older checkout has made, or whose start was broken off
    described = all((RUN / name).exists() for name in ENV_FILES)
    if not described and not stack.exists():
        if volumes:
            remove_run()
        console.print("There is no stack")
        return
    if described:
        stack.compose("down", *(["--volumes"] if volumes else []), profiles=["lab", "celery"])
    # what was started from the other folder, or a start that was broken off
    stack.remove("container", "network", *(["volume"] if volumes else []))
    if volumes:
        remove_run()
        console.print("Removed all its data, keys and secrets")


def remove_run() -> None:
    """Remove compose/run; what the nodes have written there belongs to users of theirs.

    :raises LabError: when something of it is left.
    """
    if RUN.exists() and os.getuid() and stack.docker("image", "inspect", stack.BASE_IMAGE, check=False).returncode == 0:
        options = ["--rm", "--network", "none", "--entrypoint", "find", "-v", f"{RUN}:/run-folder"]
        stack.docker("run", *options, stack.BASE_IMAGE, "/run-folder", "-mindepth", "1", "-delete")
    shutil.rmtree(RUN, ignore_errors=True)
    if RUN.exists():
        raise LabError(f"{RUN} could not be removed: it has files of the nodes' users; please remove it as root")


if __name__ == "__main__":
    sys.exit(main())
