"""Whether the standbys keep up, from ``pg_stat_replication`` on the primary (honest lag, hazard H16)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bluegreen.topology import Topology


def lag_problems(
    topology: Topology,
    rows: Iterable[Mapping[str, Any]],
    *,
    limit_bytes: int,
    held: str | None,
    held_must_replay: bool,
) -> list[str]:
    """Return one sentence for each standby that lags too much; nothing known is too much.

    :param rows: the answer to ``replication.sql``.
    :param limit_bytes: what is still healthy.
    :param held: the held member: it is judged by what it has received, and may have no receiver at all.
    :param held_must_replay: whether the held member, just released, must have replayed too.
    """
    by_member = {str(row["application_name"]): row for row in rows}
    problems = []
    for member in topology.replicas:
        holding = member.name == held and not held_must_replay
        row = by_member.get(member.name)
        if row is None or row["state"] != "streaming":
            if not holding:
                found = "no connection" if row is None else row["state"]
                problems.append(f"{member.name} does not stream (found: {found}, Patroni says {member.state})")
            continue
        column = "flush_lag_bytes" if holding else "replay_lag_bytes"
        lag = row[column]
        if lag is None or int(lag) > limit_bytes:
            problems.append(f"{member.name} lags by {'an unknown number of' if lag is None else lag} bytes ({column})")
    return problems
