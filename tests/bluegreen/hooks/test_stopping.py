"""A member is down only when its Patroni is, whatever the registry's status command says."""

from __future__ import annotations

import pytest
from test_patroni import Answer, Server, closed_port, hook, plain, server, short_times, silent  # noqa: F401

from bluegreen.checkpoint import MemberAddress
from bluegreen.exceptions import FailedForNowError
from bluegreen.hooks.node import NodeHook, Service
from bluegreen.hooks.stopping import check_patroni_down, patroni_lives

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
