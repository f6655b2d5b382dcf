"""Members, roles, timelines and tags as Patroni reports them: who may be held, who is in the way.

Source: Patroni documentation, "Patroni REST API" (``GET /cluster``); role names changed from
``master`` to ``leader``/``primary`` on the way from 3.0 to 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bluegreen.exceptions import FailedForNowError, RefusedError

_LEADER_ROLES = frozenset({"leader", "master", "primary"})
_REPLICA_ROLES = frozenset({"replica", "sync_standby", "quorum_standby"})
_CLONING = "creating replica"
_RUNNING = frozenset({"running", "streaming", "in archive recovery"})


@dataclass(frozen=True)
class Member:
    """One member of a cluster.

    :param timeline: None where Patroni does not know it.
    :param lag_bytes: relative to the leader's last published position, so no proof (hazard H16).
    """

    name: str
    role: str
    state: str
    host: str
    port: int
    api_url: str
    timeline: int | None = None
    lag_bytes: int | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_leader(self) -> bool:
        """Whether Patroni calls it the leader."""
        return self.role in _LEADER_ROLES

    @property
    def is_running(self) -> bool:
        """Whether its PostgreSQL runs."""
        return self.state in _RUNNING

    @property
    def may_be_elected(self) -> bool:
        """Whether a failover could choose it."""
        return self.role in _REPLICA_ROLES and not kept_out_of_elections(self.tags)


def kept_out_of_elections(tags: Mapping[str, Any]) -> bool:
    """Tell whether tags keep a member from becoming the leader: ``nofailover``, else ``failover_priority: 0``.

    Source: ``nofailover`` in Patroni's ``patroni/tags.py``.
    """
    explicit, priority = tags.get("nofailover"), tags.get("failover_priority")
    if explicit is not None:
        return bool(explicit)
    try:
        return priority is not None and int(priority) <= 0
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class Topology:
    """A cluster as one of its members describes it.

    :param answered_by: the address of that member's REST API.
    """

    members: tuple[Member, ...]
    scope: str = ""
    paused: bool = False
    answered_by: str = ""

    def member(self, name: str) -> Member:
        """Return a member by name.

        :raises RefusedError: when there is none of that name.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise RefusedError(f"found no member {name!r} in the cluster; its members are {self.names}: give one of those")

    @property
    def names(self) -> str:
        """The members' names, for a sentence."""
        return ", ".join(member.name for member in self.members) or "none"

    @property
    def leader(self) -> Member:
        """The one running leader.

        :raises FailedForNowError: when there is not exactly one.
        """
        leaders = [member for member in self.members if member.is_leader]
        if len(leaders) != 1 or not leaders[0].is_running:
            found = ", ".join(f"{member.name} ({member.state})" for member in leaders) or "none"
            raise FailedForNowError(
                f"found as leader: {found}; expected exactly one that runs. Look at `patronictl list`, and try "
                "again when the cluster has a leader"
            )
        return leaders[0]

    @property
    def cascading_from(self) -> tuple[Member, ...]:
        """The replicas that another one receives its WAL from (Patroni's tag ``replicatefrom``)."""
        named = [member.tags.get("replicatefrom") for member in self.replicas]
        return tuple(member for member in self.replicas if member.name in named)

    @property
    def replicas(self) -> tuple[Member, ...]:
        """Every member that is not the leader."""
        return tuple(member for member in self.members if not member.is_leader)


def is_being_cloned(topology: Topology | None, member: str) -> bool:
    """Tell whether Patroni makes a member anew, one that does not say that it is held."""
    members = topology.members if topology else ()
    return any(one.name == member and one.state == _CLONING and "bluegreen_id" not in one.tags for one in members)


def slot_name(member: str) -> str:
    """Return the name of the slot that Patroni keeps for a member.

    Source: ``slot_name_from_member_name`` in Patroni: lower case, ``_`` for ``-`` and ``.``, ``u`` and four digits for
    any other character that a slot's name may not have, at most 63 characters.
    """

    def replaced(match: re.Match[str]) -> str:
        return "_" if match[0] in "-." else f"u{ord(match[0]):04d}"

    return re.sub("[^a-z0-9_]", replaced, member.lower())[:63]


def parse_topology(payload: object) -> Topology:
    """Read the answer of ``GET /cluster``.

    :raises FailedForNowError: when it is not what Patroni answers; nothing missing is taken as healthy.
    """
    members = payload.get("members") if isinstance(payload, dict) else None
    if not isinstance(payload, dict) or not isinstance(members, list) or not members:
        raise FailedForNowError("Patroni's GET /cluster named no members; expected at least one")
    found = tuple(_member(raw) for raw in members)
    if len({member.name for member in found}) != len(found):
        raise FailedForNowError("Patroni's GET /cluster named a member twice; expected each once")
    return Topology(
        members=found,
        scope=str(payload.get("scope") or ""),
        paused=payload.get("pause") is True,
    )


def _member(raw: object) -> Member:
    if not isinstance(raw, dict):
        raise FailedForNowError("Patroni's GET /cluster named a member that is not a mapping")
    for key in ("name", "role", "state"):
        if not isinstance(raw.get(key), str) or not raw[key]:
            raise FailedForNowError(f"Patroni's GET /cluster named a member without {key}")
    port = raw.get("port")
    timeline, lag, tags = raw.get("timeline"), raw.get("lag"), raw.get("tags")
    return Member(
        name=raw["name"],
        role=raw["role"],
        state=raw["state"],
        host=str(raw.get("host") or ""),
        port=port if isinstance(port, int) and not isinstance(port, bool) else 5432,
        api_url=str(raw.get("api_url") or ""),
        timeline=timeline if isinstance(timeline, int) and not isinstance(timeline, bool) else None,
        lag_bytes=lag if isinstance(lag, int) and not isinstance(lag, bool) else None,
        tags=tags if isinstance(tags, dict) else {},
    )


def check_standby(topology: Topology, name: str) -> Member:
    """Return the member if Patroni's view of it allows a hold.

    :raises RefusedError: with the reason and what to do, when it does not.
    """
    member, leader = topology.member(name), topology.leader
    if member.is_leader:
        raise RefusedError(
            f"{name} is the leader; expected a standby. Leave `standby` empty or name one of "
            + (", ".join(replica.name for replica in topology.replicas) or "the replicas (there is none)")
        )
    if member.role not in _REPLICA_ROLES:
        raise RefusedError(f"{name} has the role {member.role!r}; expected a replica of this cluster")
    if member.state not in {"streaming", "running"}:
        raise RefusedError(f"{name} is {member.state!r}; expected a standby that streams. Choose another one")
    if member.timeline is None or member.timeline != leader.timeline:
        raise RefusedError(
            f"{name} is on timeline {member.timeline}, the leader {leader.name} on {leader.timeline}; "
            "expected the same. Wait until it follows the leader, or choose another one"
        )
    if topology_synchronous(topology) == [name]:
        raise RefusedError(
            f"{name} is the only synchronous standby; holding it could hang every commit. "
            "Choose another standby, or add a second synchronous one"
        )
    return member


def check_streams(topology: Topology) -> None:
    """Refuse members that get their WAL from the archive alone: after a rollback each has to prove that it streams.

    :raises RefusedError: with their names.
    """
    if found := [member.name for member in topology.members if member.tags.get("nostream")]:
        raise RefusedError(
            f"{', '.join(found)} is tagged nostream; expected every member to stream, since each has to prove after "
            "a rollback that it does. Take the tag out"
        )


def topology_synchronous(topology: Topology) -> list[str]:
    """Return the names of the synchronous standbys."""
    return [member.name for member in topology.members if member.role in {"sync_standby", "quorum_standby"}]


def choose_standby(topology: Topology) -> Member:
    """Choose the standby to hold: not a synchronous one, least lag, then by name.

    A standby that its owner already keeps out of elections is preferred: holding it costs no failover
    candidate.

    :raises RefusedError: with the reason for each member, when none will do.
    """
    reasons, suitable = [], []
    for replica in topology.replicas:
        try:
            suitable.append(check_standby(topology, replica.name))
        except RefusedError as error:
            reasons.append(str(error))
    if not suitable:
        raise RefusedError("no standby can be held: " + ("; ".join(reasons) or "the cluster has no replica"))
    return min(
        suitable,
        key=lambda member: (
            member.role != "replica",
            member.may_be_elected,
            member.lag_bytes if member.lag_bytes is not None else 2**63,
            member.name,
        ),
    )


def failover_candidates(topology: Topology, held: str) -> list[Member]:
    """Return the replicas that a failover could choose while one is held."""
    return [member for member in topology.replicas if member.name != held and member.may_be_elected]
