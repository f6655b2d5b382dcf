"""A member is down only when its Patroni is, whatever the registry's status command says."""

from __future__ import annotations

import pytest
from test_patroni import Answer, Server, closed_port, hook, plain, server, short_times, silent  # noqa: F401

from bluegreen.checkpoint import MemberAddress
from bluegreen.exceptions import BluegreenError, FailedForNowError, OutcomeUnknownError, RefusedError, UnreachableError
from bluegreen.hooks.cluster import Survey
from bluegreen.hooks.node import NodeHook, Service
from bluegreen.hooks.stopping import check_host_down, check_patroni_down, patroni_lives

PATRONI = '{"state": "stopped", "patroni": {"version": "4.0.6", "scope": "orders"}}'


def address(url: str) -> MemberAddress:
    return MemberAddress(host="127.0.0.1", port=1, api_url=f"{url}/patroni", ssh_host="127.0.0.1")


@pytest.mark.parametrize(
    ("answer", "lives"),
    [
        (plain(200, PATRONI), True),
        (plain(503, PATRONI), True),
        (silent, True),
        (plain(502, "<html>no upstream</html>"), False),
        (plain(503, "<html>no server is available</html>"), False),
        (plain(200, "{}"), False),
    ],
    ids=["leads", "has no server", "hangs", "proxy", "balancer", "somebody else"],
)
def test_who_answers_on_the_rest_port(server: Server, answer: Answer, lives: bool) -> None:  # noqa: F811
    server.answer = answer
    assert patroni_lives(hook(server.url), address(server.url)) is lives


def test_a_closed_port_is_nobody() -> None:
    url = closed_port()
    assert not patroni_lives(hook(url), address(url))


class Node(NodeHook):
    """One whose status command says that nothing runs."""

    def __init__(self, running: bool) -> None:
        self.member, self.address, self.running = "n1", "127.0.0.1", running

    def service_status(self) -> Service:
        return Service(self.running, "active" if self.running else "broken")


def test_a_status_command_that_is_wrong_is_not_believed(server: Server) -> None:  # noqa: F811
    server.answer = plain(200, PATRONI)
    with pytest.raises(FailedForNowError, match=r"still answers on .* though node\.status says .*broken"):
        check_patroni_down(hook(server.url), Node(False), address(server.url))


def test_both_must_say_that_it_is_gone() -> None:
    url = closed_port()
    check_patroni_down(hook(url), Node(False), address(url))
    with pytest.raises(FailedForNowError, match="still runs after its stop"):
        check_patroni_down(hook(url), Node(True), address(url))


class Host(NodeHook):
    """One whose SSH server has this port."""

    ssh_port = 0

    def __init__(self, ssh_port: int) -> None:
        self.member, self.address = "n1", "127.0.0.1"
        self.ssh_port = ssh_port  # type: ignore[misc]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_a_host_of_which_nothing_answers_may_be_declared_down() -> None:
    check_host_down(Host(port_of(closed_port())), address(closed_port()), reached=False)


def test_a_host_whose_ssh_server_lets_nobody_in_is_not_down(server: Server) -> None:  # noqa: F811
    with pytest.raises(RefusedError, match=r"but SSH on .* answers"):
        check_host_down(Host(port_of(server.url)), address(closed_port()), reached=False)


def test_a_host_that_was_reached_in_another_way_is_not_down() -> None:
    with pytest.raises(RefusedError, match=r"but SSH on .* answers"):
        check_host_down(Host(port_of(closed_port())), address(closed_port()), reached=True)


@pytest.mark.parametrize(
    ("problem", "reached"),
    [
        (UnreachableError("n1: SSH does not answer on port 22"), False),
        (RefusedError("n1: the SSH host key is not the expected one"), True),
        (FailedForNowError("sudo: a password is required"), True),
        (OutcomeUnknownError("n1: the connection was lost while a command ran"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_node_that_cannot_be_read_may_have_been_reached(problem: BluegreenError, reached: bool) -> None:
    assert Survey(None, problems={"n1": problem}).reached("n1") is reached
    assert not Survey(None).reached("n1")
