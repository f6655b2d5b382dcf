"""Stop members and prove them down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bluegreen.exceptions import RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.node import NodeHook
from bluegreen.hooks.stopping import stop_member
from bluegreen.operators.base import BluegreenOperator, owner_of

if TYPE_CHECKING:
    from airflow.sdk import Context


class StopMembersOperator(BluegreenOperator):
    """Stop Patroni and PostgreSQL on some members, side by side, and prove each one down.

    Down means: no process on the data directory, the port closed, and Patroni's configuration moved
    aside, so that neither a reboot nor a person starts it by accident (hazards H13 and H14).

    Example::

        stop = StopMembersOperator(
            task_id="stop", cluster="orders",
            members={"n2": {"host": "10.0.0.2", "port": 5432, "ssh_host": "10.0.0.2"}},
        )

    :param members: name to ``host``, ``port`` and ``ssh_host`` (templated); an empty mapping does nothing.
    :raises FailedForNowError: when a member did not stop.
    """

    template_fields: Sequence[str] = (*BluegreenOperator.template_fields, "members")

    def __init__(self, *, members: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.members = members

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Stop each that is not down yet."""
        if not isinstance(self.members, dict):
            raise RefusedError(f"found {type(self.members).__name__} as members; expected a mapping of name to address")
        for name, address in self.members.items():
            hook.node(name, address["ssh_host"])

        states = hook.on_each(self.members, NodeHook.state) if self.members else {}
        hook.refuse_foreign_lock(owner_of(context, ""), states)

        def stop(node: NodeHook) -> dict[str, object]:
            address = self.members[node.member]
            return stop_member(node, address["host"], int(address["port"]))

        stopped = hook.on_each(self.members, stop) if self.members else {}
        for name, found in stopped.items():
            self.log.info("%s is down: %s", name, found["state"])
        return {"stopped": stopped}
