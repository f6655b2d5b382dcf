"""Members proven down, and servers outside Patroni: what stop, recover and put-back share."""

from __future__ import annotations

import socket

import httpx

from bluegreen import shell
from bluegreen.checkpoint import MemberAddress
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError, UnreachableError
from bluegreen.hooks.node import DataDirectory, NodeHook, NodeState
from bluegreen.hooks.patroni import PatroniHook
from bluegreen.hooks.waiting import wait_until

STOP_SECONDS = 90
FAST_SECONDS = 60
FAST_SECONDS_OF_DISCARDED = 30
IMMEDIATE_SECONDS = 30
DOWN_STATES = frozenset({"shut down", "shut down in recovery"})


def listens(host: str, port: int, *, seconds: float = 2.0) -> bool:
    """Tell whether something accepts connections there, as seen from the worker."""
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False


def check_patroni_down(patroni: PatroniHook, node: NodeHook, address: MemberAddress) -> None:
    """Look whether a member's Patroni is gone: by its REST API too, since a status command can be wrong.

    :raises FailedForNowError: while it is not.
    """
    status = node.service_status()
    if status.running:
        raise FailedForNowError(f"{node.where}: Patroni still runs after its stop ({status.text})")
    if patroni_lives(patroni, address):
        raise FailedForNowError(
            f"{node.where}: Patroni still answers on {address.api_url} after its stop, though node.status says that it "
            f"does not run ({status.text or 'without a word'}); expected it gone. Stop it there, and look whether the "
            "registry's stop and status commands are those of this node"
        )


def patroni_lives(patroni: PatroniHook, address: MemberAddress) -> bool:
    """Tell whether a Patroni has its REST API open; a proxy in front of one that is gone does not count."""
    url = httpx.URL(address.api_url)
    if not listens(url.host, url.port or (443 if url.scheme == "https" else 80)):
        return False
    try:
        return "patroni" in patroni.member_status(address.api_url)
    except UnreachableError:
        # It accepts connections and says nothing: one that hangs can come to itself.
        return True
    except FailedForNowError:
        return False


def check_down(patroni: PatroniHook, node: NodeHook, state: NodeState, address: MemberAddress) -> DataDirectory:
    """Look whether a member is down: no Patroni, no process on its data directory, its port closed (hazard H14).

    :raises FailedForNowError: while it is not.
    """
    if patroni_lives(patroni, address):
        raise FailedForNowError(f"{node.where}: Patroni answers on {address.api_url}; expected it stopped")
    host, port = address.host, address.port
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


def stop_member(
    patroni: PatroniHook,
    node: NodeHook,
    address: MemberAddress,
    state: NodeState | None = None,
    *,
    discarded: bool = True,
) -> DataDirectory:
    """Stop Patroni and PostgreSQL on a node, for good: through a reboot, until its own rejoin (H13, H14).

    The configuration is moved aside first: a running Patroni does not need it, and nobody can start
    another one meanwhile.

    A fast shutdown ends with a checkpoint, which takes minutes where much of a large cache is dirty, and nobody
    serves meanwhile. So a member whose data is discarded gets an immediate one where the fast one does not end:
    no durable commit is lost by it ("Shutting Down the Server"), and its recovery runs when it rejoins.

    :param state: the node's configuration, where it was read just now.
    :param discarded: its data is set back to the new leader's afterwards; not so the held member's.
    :return: what is in its data directory, now that nothing runs there.
    :raises FailedForNowError: when it did not stop.
    """
    state = state or node.state()
    if not state.aside:
        node.done(shell.set_aside(node.config_path), "moving Patroni's configuration aside")
    # Where it was in place, the service most likely runs; stopping one that does not is harmless.
    if not state.aside or node.service_status().running or patroni_lives(patroni, address):
        try:
            node.service("stop", timeout_seconds=STOP_SECONDS)
        except OutcomeUnknownError as error:
            node.log.warning("%s. Looking at what runs", error)
        _wait_without_patroni(patroni, node, address, state, discarded=discarded)
    found = node.data_directory(state.config)
    if found.server_processes:
        # Maintenance mode, or KillMode=process and a slow shutdown.
        _stop_server(node, state, found, discarded=discarded)
    if found.server_processes or listens(address.host, address.port):
        found = wait_until(lambda: check_down(patroni, node, state, address), seconds=20)
    if not is_clean(found):
        node.log.warning("%s: was not shut down cleanly (%s); nothing runs there", node.where, cluster_state(found))
    return found


def _wait_without_patroni(
    patroni: PatroniHook, node: NodeHook, address: MemberAddress, state: NodeState, *, discarded: bool
) -> None:
    """Wait until its Patroni is gone, before its server is touched: a living one would start that again, or lead."""

    def gone() -> None:
        check_patroni_down(patroni, node, address)

    try:
        wait_until(gone, seconds=20)
    except FailedForNowError:
        if not discarded or not (found := node.data_directory(state.config)).server_processes:
            raise
        # One that waits for its server's shutdown can be helped, and leads no more; any other is left alone.
        script = shell.stop_server(
            state.config.data_dir, found.bin_dir, mode="immediate", seconds=IMMEDIATE_SECONDS, only_stopping=True
        )
        result = node.run(script, timeout_seconds=IMMEDIATE_SECONDS + 10)
        if result.status:
            node.log.warning("%s: was not shut down at once: %s", node.where, " ".join(result.error.split())[:300])
            raise
        node.log.warning("%s: Patroni waited for its server's fast shutdown; it was shut down at once", node.where)
        wait_until(gone, seconds=20)


def _stop_server(node: NodeHook, state: NodeState, found: DataDirectory, *, discarded: bool) -> None:
    def stop(mode: str, seconds: int) -> None:
        node.done(
            shell.stop_server(state.config.data_dir, found.bin_dir, mode=mode, seconds=seconds),
            f"stopping PostgreSQL, which its service left running ({mode} shutdown)",
            timeout_seconds=seconds + 10,
        )

    try:
        stop("fast", FAST_SECONDS_OF_DISCARDED if discarded else FAST_SECONDS)
    except (FailedForNowError, OutcomeUnknownError) as error:
        if not discarded:
            raise
        node.log.warning("%s. Its data is discarded: shutting it down at once", error)
        stop("immediate", IMMEDIATE_SECONDS)


def cluster_state(found: DataDirectory) -> str:
    """Return how a server left its data directory, as ``pg_controldata`` names it."""
    try:
        return found.control("Database cluster state")
    except FailedForNowError:
        return "no data"


def is_clean(found: DataDirectory) -> bool:
    """Tell whether a stopped server was shut down cleanly: what it has is complete without its WAL."""
    return cluster_state(found) in DOWN_STATES


def check_host_down(node: NodeHook, address: MemberAddress, *, reached: bool) -> None:
    """Refuse a declaration that a host is down when something of it answers.

    An SSH server that lets nobody in lives too: with a changed host key, or where sudo is refused.

    :param reached: whether its SSH server has answered already, whatever it said.
    :raises RefusedError: when PostgreSQL, Patroni or SSH of it answers.
    """
    api = httpx.URL(address.api_url)
    answering = [
        name
        for name, answers in (
            ("SSH", reached or listens(node.address, node.ssh_port)),
            ("PostgreSQL", listens(address.host, address.port)),
            ("Patroni", api.port is not None and listens(api.host, api.port)),
        )
        if answers
    ]
    if answering:
        raise RefusedError(
            f"{node.member} was declared down (hosts_down), but {' and '.join(answering)} on {address.host} answers; "
            "expected nothing to. Leave it out of hosts_down"
        )
