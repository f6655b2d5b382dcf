"""Stop members and prove them down."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bluegreen.checkpoint import Checkpoint, MemberAddress, Phase
from bluegreen.exceptions import RefusedError, UnreachableError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.node import DataDirectory, NodeHook
from bluegreen.hooks.stopping import cluster_state, is_clean, stop_member
from bluegreen.operators.base import BluegreenOperator, require_lock

if TYPE_CHECKING:
    from airflow.sdk import Context

BEGUN = frozenset({Phase.STOPPING, Phase.RECOVERING, Phase.PROMOTED, Phase.TAKEN_OVER})


class StopMembersOperator(BluegreenOperator):
    """Stop Patroni and PostgreSQL on members, in order and otherwise side by side, and prove each one down.

    Down means: no process on the data directory, the port closed, and Patroni's configuration moved
    aside, so that neither a reboot nor a person starts it by accident (hazards H13 and H14).

    Example::

        stop = StopMembersOperator(
            task_id="stop", cluster="orders",
            members={
                "n2": {
                    "host": "10.0.0.2",
                    "port": 5432,
                    "api_url": "http://10.0.0.2:8008/patroni",
                    "ssh_host": "10.0.0.2",
                }
            },
        )

    :param members: name to ``host``, ``port``, ``api_url`` and ``ssh_host`` (templated); an empty mapping does nothing.
    :param beside: members that are stopped meanwhile, at any moment, and whose data is kept (templated).
    :param last: members that are stopped when all of ``members`` are down, as the leader must be: while another
        replica runs, that one would be promoted in its place (hazard H5) (templated).
    :raises RefusedError: when this run does not hold the lock, the journal does not say that a rollback has begun, or
        a member has joined since the checkpoint.
    :raises FailedForNowError: when a member did not stop.
    """

    template_fields: Sequence[str] = (*BluegreenOperator.template_fields, "members", "beside", "last")

    def __init__(self, *, members: Any, beside: Any = None, last: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.members = members
        self.beside = beside
        self.last = last

    def act(self, hook: ClusterHook, context: Context) -> dict[str, Any]:
        """Stop each that is not down yet."""
        members, beside, last = (_mapping(value) for value in (self.members, self.beside or {}, self.last or {}))
        addresses = {**members, **beside, **last}
        for name, address in addresses.items():
            hook.node(name, address.ssh_host)
        # Like the nodes' connections: read before threads start, since it asks Airflow's API.
        hook.patroni.get_conn()

        if not addresses:
            return {"stopped": {}}
        states = hook.on_each(addresses, NodeHook.state)
        survey = Survey(None, states)
        hook.find_checkpoint(survey)
        if survey.checkpoint is None or survey.checkpoint.phase not in BEGUN:
            phase = f"a checkpoint that is {survey.checkpoint.phase.value!r}" if survey.checkpoint else "no checkpoint"
            raise RefusedError(
                f"found {phase} on {', '.join(sorted(states))}; expected a rollback that has begun: nobody is stopped "
                "before. Run bluegreen_rollback again, or clear its task `plan` with all that follow"
            )
        for name, place in survey.checkpoint.members.items():
            hook.node(name, place.ssh_host)
        require_lock(hook, context, survey)

        def stop(node: NodeHook) -> DataDirectory:
            name = node.member
            return stop_member(hook.patroni, node, addresses[name], states[name], discarded=name not in beside)

        with ThreadPoolExecutor(max_workers=1) as pool:
            meanwhile = pool.submit(hook.on_each, beside, stop)
            stopped = hook.on_each(members, stop)
            if last:
                self._look_for_strangers(hook, survey.checkpoint)
            stopped |= hook.on_each(last, stop)
            stopped |= meanwhile.result()
        left_as = {name: cluster_state(found) for name, found in sorted(stopped.items())}
        for name, state in left_as.items():
            self.log.info("%s is down: %s", name, state)
        warnings = [
            f"{name} was not shut down cleanly (pg_controldata: {state}): it had crashed, or its fast "
            "shutdown took too long. It replays its own WAL once more when it is started or rewound; where it is "
            "put back into service, its unlogged tables are empty"
            for name, state in left_as.items()
            if not is_clean(stopped[name])
        ]
        return {"stopped": {name: {"state": state} for name, state in left_as.items()}, "warnings": warnings}

    def _look_for_strangers(self, hook: ClusterHook, checkpoint: Checkpoint) -> None:
        """Look once more who is in the cluster, while the leader can still say: one may have joined since the plan."""
        try:
            topology = hook.patroni.topology()
        except UnreachableError as error:
            self.log.info("nobody says who has joined: %s", error)
        else:
            checkpoint.require_alone(member.name for member in topology.members)


def _mapping(value: object) -> dict[str, MemberAddress]:
    if not isinstance(value, dict):
        raise RefusedError(f"found {type(value).__name__} as members; expected a mapping of name to address")
    try:
        return {str(name): MemberAddress.model_validate(address) for name, address in value.items()}
    except ValidationError as error:
        wrong = error.errors()[0]
        raise RefusedError(
            f"found a member without a usable {'.'.join(map(str, wrong['loc']))}; expected host, port, api_url and "
            "ssh_host"
        ) from None
