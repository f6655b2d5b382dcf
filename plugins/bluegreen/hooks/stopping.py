"""Members proven down, and servers outside Patroni: what stop, recover and put-back share."""

from __future__ import annotations

import socket

import httpx

from bluegreen import shell
from bluegreen.checkpoint import MemberAddress
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError
from bluegreen.hooks.node import DataDirectory, NodeHook, NodeState
from bluegreen.hooks.waiting import wait_until

STOP_SECONDS = 90
DOWN_STATES = frozenset({"shut down", "shut down in recovery"})


def listens(host: str, port: int, *, seconds: float = 2.0) -> bool:
    """Tell whether something accepts connections there, as seen from the worker."""
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False


def check_down(node: NodeHook, state: NodeState, host: str, port: int) -> DataDirectory:
    """Look whether a member is down: no process on its data directory, its port closed (hazard H14).

    :raises FailedForNowError: while it is not.
    """
    found = node.data_directory(state.config)
    if found.server_processes:
        raise FailedForNowError(
            f"{node.where}: {found.server_processes} process(es) still run on {state.config.data_dir}; expected none"
        )
    if listens(host, port):
        raise FailedForNowError(
            f"{node.where}: something still listens on {host}:{port}, though no server runs on "
            f"{state.config.data_dir}; expected the port closed"
        )
    return found


def stop_member(node: NodeHook, host: str, port: int, state: NodeState | None = None) -> DataDirectory:
    """Stop Patroni and PostgreSQL on a node, for good: through a reboot, until its own rejoin (H13, H14).

    The configuration is moved aside first: a running Patroni does not need it, and nobody can start
    another one meanwhile.

    :param state: the node's configuration, where it was read just now.
    :return: what is in its data directory, now that nothing runs there.
    :raises FailedForNowError: when it did not stop.
    """
    state = state or node.state()
    if not state.aside:
        node.done(shell.set_aside(node.config_path), "moving Patroni's configuration aside")
    # Where it was in place, the service most likely runs; stopping one that does not is harmless.
    if not state.aside or node.service_status().running:
        try:
            node.service("stop", timeout_seconds=STOP_SECONDS)
        except OutcomeUnknownError as error:
            node.log.warning("%s. Looking at what runs", error)

        def inactive() -> None:
            status = node.service_status()
            if status.running:
                raise FailedForNowError(f"{node.where}: Patroni still runs after its stop ({status.text})")

        wait_until(inactive, seconds=20)
    found = node.data_directory(state.config)
    if found.server_processes:
        # Maintenance mode, or KillMode=process and a slow shutdown.
        node.done(
            shell.stop_server(state.config.data_dir, found.bin_dir, mode="fast", seconds=60),
            "stopping PostgreSQL, which its service left running",
            timeout_seconds=STOP_SECONDS,
        )
    if found.server_processes or listens(host, port):
        found = wait_until(lambda: check_down(node, state, host, port), seconds=20)
    if (left_as := cluster_state(found)) not in DOWN_STATES:
        node.log.warning("%s: was not shut down cleanly (%s); nothing runs there", node.where, left_as)
    return found


def cluster_state(found: DataDirectory) -> str:
    """Return how a server left its data directory, as ``pg_controldata`` names it."""
    try:
        return found.control("Database cluster state")
    except FailedForNowError:
        return "no data"


def check_host_down(member: str, address: MemberAddress, *, ssh_answers: bool) -> None:
    """Refuse a declaration that a host is down when something of it answers.

    :raises RefusedError: when PostgreSQL, Patroni or SSH of it answers.
    """
    api = httpx.URL(address.api_url)
    answering = [
        name
        for name, answers in (
            ("SSH", ssh_answers),
            ("PostgreSQL", listens(address.host, address.port)),
            ("Patroni", api.port is not None and listens(api.host, api.port)),
        )
        if answers
    ]
    if answering:
        raise RefusedError(
            f"{member} was declared down (hosts_down), but {' and '.join(answering)} on {address.host} answers; "
            "expected nothing to. Leave it out of hosts_down"
        )
