"""Who leads after a rollback, and what proves it (hazards H5 and H13)."""

from __future__ import annotations

from bluegreen.checkpoint import Checkpoint
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.node import DataDirectory, NodeHook, NodeState
from bluegreen.hooks.waiting import wait_until
from bluegreen.recovery.history import contains_branch, history_name, parse_history


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


def check_leader(hook: ClusterHook, checkpoint: Checkpoint) -> None:
    """Look whether the held member is the one leader, and says so itself.

    :raises RefusedError: when somebody else leads.
    :raises FailedForNowError: while it does not lead yet.
    """
    api_url = checkpoint.members[checkpoint.held].api_url
    if hook.patroni.health(api_url, "primary") != 200:
        raise FailedForNowError(f"{checkpoint.held} is not the leader yet (GET /primary does not answer 200)")
    topology = hook.patroni.topology()
    if topology.leader.name != checkpoint.held:
        raise RefusedError(
            f"the leader is {topology.leader.name}, expected {checkpoint.held}: somebody started Patroni there first. "
            f"It holds the discarded data. Stop Patroni on {topology.leader.name}, then run the rollback again"
        )


def prove_history(node: NodeHook, state: NodeState, checkpoint: Checkpoint) -> DataDirectory:
    """Prove that a member's history has the line that was proven at the promotion (hazard H5).

    :return: the data directory that it was found in.
    :raises FailedForNowError: while it has not.
    """
    branch = parse_history(checkpoint.branch_line)[0]
    found = node.data_directory(state.config)
    text = found.histories.get(history_name(checkpoint.new_timeline or 0), "")
    if not text or not contains_branch(text, branch):
        raise FailedForNowError(
            f"{node.where}: the history of timeline {checkpoint.new_timeline} does not have the line "
            f"{checkpoint.branch_line!r}"
        )
    return found


def prove_write(hook: ClusterHook, checkpoint: Checkpoint) -> dict[str, str]:
    """Commit a write on the held member, through its own address."""
    row = hook.sql_of(checkpoint, checkpoint.held).row("takeover_write", name=f"bluegreen_{checkpoint.id}_restored")
    return {name: str(value) for name, value in row.items()}


def restore_dynamic_config(hook: ClusterHook, checkpoint: Checkpoint, *, seconds: float) -> list[str]:
    """Prove that ``/config`` is what it was before the removal, or put it back (hazard H10).

    :param seconds: how long to wait for Patroni to show one, which it does up to two turns after its takeover.
    :return: a warning that names what had to be put back.
    :raises FailedForNowError: when it shows none in time.
    """
    api_url = checkpoint.members[checkpoint.held].api_url
    found = wait_until(lambda: hook.patroni.dynamic_config(api_url), seconds=seconds)
    if found == checkpoint.dynamic_config:
        return []
    hook.patroni.replace_dynamic_config(api_url, checkpoint.dynamic_config)
    changed = sorted(
        key for key in {*found, *checkpoint.dynamic_config} if found.get(key) != checkpoint.dynamic_config.get(key)
    )
    return [f"Patroni's dynamic configuration had other values for {', '.join(changed)}; they were put back"]
