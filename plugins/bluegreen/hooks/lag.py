"""One look at every standby's lag: bytes on the primary, seconds on the standby."""

from __future__ import annotations

from bluegreen.exceptions import FailedForNowError
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.hooks.postgres import MemberSql
from bluegreen.lag import lag_problems


def look_at_lag(cluster: str, *, held: str | None, held_must_replay: bool) -> list[str]:
    """Return one sentence for each standby that lags by more than the registry allows.

    :param held: the held member: it is judged by what it has received.
    :param held_must_replay: judge every standby by replay, in bytes and in seconds.
    :raises BluegreenError: when the lag cannot be known.
    """
    with ClusterHook(cluster) as hook:
        topology = hook.patroni.topology()
        rows = hook.replication(topology)
        limits = hook.cluster.limits
        problems = lag_problems(
            topology, rows, limit_bytes=limits.lag_bytes, held=held, held_must_replay=held_must_replay
        )
        if held_must_replay and not problems:
            for member in topology.replicas:
                try:
                    check_delay(hook.sql(member.name, member.host, member.port), limits.lag_seconds)
                except FailedForNowError as error:
                    problems.append(str(error))
        return problems


def check_delay(sql: MemberSql, limit_seconds: float) -> None:
    """Look whether what a standby shows is at most so old.

    :raises FailedForNowError: when it is older, or its age is not known.
    """
    delay = sql.row("replay_delay")["replay_delay_seconds"]
    if delay is None or float(delay) > limit_seconds:
        found = "of unknown age" if delay is None else f"{float(delay):.1f} s old"
        raise FailedForNowError(
            f"what {sql.where} shows is {found}, the limit is {limit_seconds:g} s (limits.lag_seconds)"
        )
