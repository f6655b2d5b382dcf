"""Who leads after a rollback, and what proves it (hazards H5 and H13)."""

from __future__ import annotations

from dataclasses import dataclass

from bluegreen.checkpoint import Checkpoint, Phase
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError
from bluegreen.hooks.cluster import ClusterHook, Survey
from bluegreen.hooks.node import DataDirectory, NodeHook, NodeState
from bluegreen.hooks.waiting import wait_until
from bluegreen.recovery.history import contains_branch, history_name, parse_history
from bluegreen.topology import Member


def check_another_leads(hook: ClusterHook, held: str, wanted: str = "") -> Member:
    """Look whether another member than the held one leads and takes writes, and return it.

    :param wanted: the member that must be it, or empty for any.
    :raises RefusedError: when the held member leads.
    :raises FailedForNowError: when nobody does, or not the one that was wanted.
    """
    leader = hook.patroni.topology().leader
    if leader.name == held:
        raise RefusedError(f"{held}, the held member, has become the leader; expected one of the others")
    if wanted not in ("", leader.name):
        raise FailedForNowError(f"{leader.name} leads, expected {wanted}")
    row = hook.sql(leader.name, leader.host, leader.port).row("identity")
    if row["in_recovery"] is not False:
        raise FailedForNowError(f"{leader.name} is called the leader but is in recovery")
    return leader


def start_patroni(node: NodeHook) -> None:
    """Run the registry's start command unless Patroni runs already.

    :raises FailedForNowError: when it does not run afterwards.
    """
    if node.service_status().running:
        return
    try:
        result = node.service("start")
    except OutcomeUnknownError as error:
        node.log.warning("%s. Looking at what runs", error)
        result = None
    status = node.service_status()
    if not status.running:
        said = " ".join((result.output + result.error).split())[:300] if result else "nothing"
        raise FailedForNowError(f"{node.where}: Patroni does not run after its start; it said: {said}")


@dataclass(frozen=True)
class Leader:
    """A leader whose line of history is proven.

    :param timeline: the current one, as its server says.
    """

    name: str
    api_url: str
    timeline: int


def look_at_leader(hook: ClusterHook, survey: Survey, checkpoint: Checkpoint) -> Leader:
    """Prove that the cluster has one leader, and that it continues the timeline which began at the mark.

    Until the takeover that is the held member alone. Afterwards it may be another one on a later timeline: a
    crash or a failover makes one more. The proof is its history, never a name or a number (hazards H5 and H13).

    :raises RefusedError: when somebody else leads, or on another line of history.
    :raises FailedForNowError: while nobody leads.
    """
    topology = hook.patroni.topology()
    name = topology.leader.name
    stray = RefusedError(
        f"the leader is {name}, expected {checkpoint.held}: somebody started Patroni there first. It holds the "
        f"discarded data. Stop Patroni on {name}, then run the rollback again"
    )
    if name != checkpoint.held and (checkpoint.phase is not Phase.TAKEN_OVER or name not in checkpoint.members):
        raise stray
    api_url = checkpoint.members[name].api_url
    if hook.patroni.health(api_url, "primary") != 200:
        raise FailedForNowError(f"{name} is not the leader yet (GET /primary does not answer 200)")
    timeline = hook.patroni.member_status(api_url).get("timeline")
    if type(timeline) is not int or timeline < 1:
        raise FailedForNowError(f"{name} does not say which timeline it is on; found {timeline!r}")
    survey.require([name])
    found = hook.nodes[name].data_directory(survey.states[name].config)
    if not continues_branch(found, checkpoint, timeline):
        if name != checkpoint.held:
            raise stray
        raise FailedForNowError(_lacks_branch(hook.nodes[name], checkpoint, timeline))
    return Leader(name, api_url, timeline)


def continues_branch(found: DataDirectory, checkpoint: Checkpoint, timeline: int) -> bool:
    """Tell whether a timeline's history, as it lies in a data directory, has the line proven at the promotion."""
    text = found.histories.get(history_name(timeline), "")
    return contains_branch(text, parse_history(checkpoint.branch_line)[0])


def prove_history(node: NodeHook, state: NodeState, checkpoint: Checkpoint, timeline: int) -> DataDirectory:
    """Prove that a member's history of the leader's timeline has the line proven at the promotion (hazard H5).

    :param timeline: the leader's.
    :return: the data directory that it was found in.
    :raises FailedForNowError: while it has not.
    """
    found = node.data_directory(state.config)
    if not continues_branch(found, checkpoint, timeline):
        raise FailedForNowError(_lacks_branch(node, checkpoint, timeline))
    return found


def _lacks_branch(node: NodeHook, checkpoint: Checkpoint, timeline: int) -> str:
    return f"{node.where}: the history of timeline {timeline} does not have the line {checkpoint.branch_line!r}"


def prove_write(hook: ClusterHook, checkpoint: Checkpoint, leader: Leader) -> dict[str, str]:
    """Commit a write on the leader, through its own address."""
    row = hook.sql_of(checkpoint, leader.name).row("takeover_write", name=f"bluegreen_{checkpoint.id}_restored")
    return {name: str(value) for name, value in row.items()}


def restore_dynamic_config(hook: ClusterHook, checkpoint: Checkpoint, leader: Leader, *, seconds: float) -> list[str]:
    """Prove that ``/config`` is what it was before the removal, or put it back (hazard H10).

    :param seconds: how long to wait for Patroni to show one, which it does up to two turns after its takeover.
    :return: a warning that names what had to be put back.
    :raises FailedForNowError: when it shows none in time.
    """
    found = wait_until(lambda: hook.patroni.dynamic_config(leader.api_url), seconds=seconds)
    if found == checkpoint.dynamic_config:
        return []
    hook.patroni.replace_dynamic_config(leader.api_url, checkpoint.dynamic_config)
    changed = sorted(
        key for key in {*found, *checkpoint.dynamic_config} if found.get(key) != checkpoint.dynamic_config.get(key)
    )
    return [f"Patroni's dynamic configuration had other values for {', '.join(changed)}; they were put back"]
