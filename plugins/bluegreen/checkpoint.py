"""The checkpoint record, its journal and lock, its tags, and which phase may follow which."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from bluegreen.exceptions import LockedError, RefusedError
from bluegreen.recovery.versions import HoldMechanism

LABEL_MAX = 200
_ID = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
_LSN_TEXT = r"^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$"
Lsn = Annotated[str, StringConstraints(pattern=_LSN_TEXT)]


class Phase(StrEnum):
    """How far an operation on a checkpoint has come, as the journal says."""

    HOLDING = "holding"
    HELD = "held"
    RELEASING = "releasing"
    STOPPING = "stopping"
    RECOVERING = "recovering"
    PROMOTED = "promoted"
    TAKEN_OVER = "taken_over"


_FOLLOWS: dict[Phase, frozenset[Phase]] = {
    Phase.HOLDING: frozenset({Phase.HOLDING, Phase.HELD, Phase.RELEASING}),
    Phase.HELD: frozenset({Phase.HELD, Phase.RELEASING, Phase.STOPPING}),
    Phase.RELEASING: frozenset({Phase.RELEASING}),
    Phase.STOPPING: frozenset({Phase.STOPPING, Phase.RECOVERING, Phase.HELD, Phase.RELEASING}),
    Phase.RECOVERING: frozenset({Phase.RECOVERING, Phase.PROMOTED, Phase.HELD, Phase.RELEASING}),
    Phase.PROMOTED: frozenset({Phase.PROMOTED, Phase.TAKEN_OVER}),
    Phase.TAKEN_OVER: frozenset({Phase.TAKEN_OVER}),
}
POINT_OF_NO_RETURN = frozenset({Phase.PROMOTED, Phase.TAKEN_OVER})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Owner(_Strict):
    """Which run does, or did, something.

    :param person: who triggered it, as Airflow recorded.
    """

    operation: str
    dag_id: str
    run_id: str
    person: str = ""
    since: str = ""

    def is_same_run(self, other: Owner) -> bool:
        """Whether both are the same DAG run."""
        return (self.dag_id, self.run_id) == (other.dag_id, other.run_id)

    def __str__(self) -> str:
        who = f" by {self.person}" if self.person else ""
        return f"{self.operation} (run {self.run_id}{who}, since {self.since or 'unknown'})"


class MemberAddress(_Strict):
    """Where a member was found when the checkpoint was taken."""

    host: str
    port: int
    api_url: str
    ssh_host: str


class Hold(_Strict):
    """What the hold changed, so that exactly that can be taken out again.

    :param settings: pairs of a path of keys and its value.
    :param original_sha256: of the configuration before the hold.
    :param held_sha256: of the configuration as the hold left it; another sum means that somebody edited it.
    """

    mechanism: HoldMechanism
    settings: list[tuple[tuple[str, ...], Any]]
    original_sha256: str
    held_sha256: str
    previous_apply_delay: str | None = None
    previous_feedback: str | None = None


class Checkpoint(_Strict):
    """A held state that can be rolled back to: the content of the journal.

    :param xid: the mark's transaction id with its epoch; None until it was taken.
    :param lsn: the primary's insert position read after the mark's COMMIT: an upper bound.
    :param restore_point_lsn: a position just before the mark's commit record.
    :param revision: grows with every write; the highest one among the members is the truth.
    :param server_files: where the held server reads its files (``hba_file`` and others).
    :param branch_line: the proven line of the new timeline's history.
    :param config_proven: ``/config`` was as it should be after the takeover; what is changed later is meant.
    """

    id: str
    cluster: str
    scope: str
    label: str = ""
    phase: Phase
    revision: int = 0
    held: str
    leader: str
    members: dict[str, MemberAddress]
    server_version_num: int
    system_identifier: str
    taken_by: Owner
    deployment: Owner | None = None
    dynamic_config: dict[str, Any] = Field(default_factory=dict, repr=False)
    hold: Hold | None = Field(default=None, repr=False)
    server_files: dict[str, str] = Field(default_factory=dict)
    xid: int | None = None
    restore_point_lsn: Lsn | None = None
    lsn: Lsn | None = None
    timeline: int | None = None
    taken_at: str = ""
    expires_at: str = ""
    new_timeline: int | None = None
    branch_line: str = ""
    config_proven: bool = False
    rejoined: dict[str, str] = Field(default_factory=dict)
    hosts_down: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_members(self) -> Checkpoint:
        """Whoever is named plays a part, and must have an address."""
        if strangers := sorted({self.held, self.leader, *self.hosts_down} - set(self.members)):
            raise ValueError(f"{', '.join(strangers)[:200]}: named, but not among the members")
        return self

    @property
    def others(self) -> list[str]:
        """Every member but the held one, by name."""
        return sorted(name for name in self.members if name != self.held)

    def strangers(self, members: Iterable[str]) -> list[str]:
        """Return who is not a member of this checkpoint, by name: whoever joined the cluster after it."""
        return sorted(set(members) - set(self.members))

    def require_alone(self, members: Iterable[str]) -> None:
        """Refuse a rollback where a member has joined since the checkpoint: nothing would stop it (hazard H5).

        :param members: who the DCS says is in the cluster.
        :raises RefusedError: when one is not of this checkpoint and the takeover is not over.
        """
        if self.phase is not Phase.TAKEN_OVER and (strangers := self.strangers(members)):
            raise RefusedError(
                f"{', '.join(strangers)} joined the cluster after checkpoint {self.id}, so a rollback would not stop "
                "it and it would lead with the discarded data; expected the members of the checkpoint alone. Stop "
                "Patroni there for good, wait until `patronictl list` does not show it, and clone it afresh after the "
                "rollback"
            )

    @property
    def past_no_return(self) -> bool:
        """Whether the held member was promoted at the mark: from there on there is only forward."""
        return self.phase in POINT_OF_NO_RETURN

    def advanced(self, phase: Phase, **changes: Any) -> Checkpoint:
        """Return the next revision.

        :raises RefusedError: when that phase may not follow this one.
        """
        if phase not in _FOLLOWS[self.phase]:
            raise RefusedError(
                f"checkpoint {self.id} is {self.phase.value!r}; from there it cannot become {phase.value!r}. "
                + ("Finish the rollback: run bluegreen_rollback again" if self.past_no_return else "")
            )
        return self.model_copy(update={"phase": phase, "revision": self.revision + 1, **changes})

    def display_tags(self) -> dict[str, str]:
        """Return the tags that Patroni publishes, without their prefix; every value is text."""
        return {
            "id": self.id,
            "xid": str(self.xid),
            "lsn": str(self.lsn),
            "timeline": str(self.timeline),
            "taken_at": self.taken_at,
            "label": self.label,
        }

    def to_journal(self) -> str:
        """Return the journal's text."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    def public(self) -> dict[str, Any]:
        """Return what reports may show: neither saved configuration nor settings, which can hold secrets."""
        return self.model_dump(mode="json", exclude={"dynamic_config", "hold", "server_files"})


def parse_journal(text: str, *, where: str) -> Checkpoint:
    """Read a journal.

    :raises RefusedError: when it is damaged; a journal that cannot be read is never "no checkpoint".
    """
    try:
        return Checkpoint.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RefusedError(
            f"{where}: the journal cannot be read ({place}: {first['msg']}); expected one written by bluegreen. "
            "Compare it with the same file on the other members before removing it"
        ) from None


def newest(journals: Iterable[Checkpoint]) -> Checkpoint | None:
    """Return the journal that is the truth among those of a cluster's members.

    :raises RefusedError: when members hold journals of different checkpoints.
    """
    found = list(journals)
    if len({journal.id for journal in found}) > 1:
        raise RefusedError(
            "found journals of different checkpoints: "
            + ", ".join(sorted({f"{journal.id} ({journal.phase.value})" for journal in found}))
            + "; expected one. A person has to decide which one is real and remove the other's files"
        )
    return max(found, key=lambda journal: journal.revision, default=None)


def new_id(at: datetime, run: str) -> str:
    """Return a checkpoint's id; the same run always gets the same one, so that a retry finds its own."""
    return f"bg_{at:%Y%m%d_%H%M%S}_{hashlib.sha256(run.encode()).hexdigest()[:6]}"


def check_id(value: str) -> str:
    """Return an id if it is one.

    :raises RefusedError: otherwise.
    """
    if not _ID.match(value):
        raise RefusedError(
            f"found {value[:60]!r} as checkpoint; expected an id such as bg_20261124_141500_1a2b3c "
            "(the checkpoint's report and `patronictl list` show it)"
        )
    return value


def check_label(value: object) -> str:
    """Return a label if it is at most 200 printable characters.

    :raises RefusedError: otherwise.
    """
    if not isinstance(value, str) or len(value) > LABEL_MAX or not value.isprintable():
        found = f"{len(value)} characters" if isinstance(value, str) and len(value) > LABEL_MAX else repr(value)[:80]
        raise RefusedError(
            f"found as label: {found}; expected at most {LABEL_MAX} printable characters on one line. Shorten it"
        )
    return value


def expires_at(taken_at: datetime, expires_after_seconds: float) -> str:
    """Return when a checkpoint expires, in ISO 8601."""
    return (taken_at + timedelta(seconds=expires_after_seconds)).isoformat(timespec="seconds")


def parse_owner(text: str, *, where: str) -> Owner:
    """Read a lock file.

    :raises LockedError: when it is damaged; a lock that cannot be read is a lock.
    """
    try:
        return Owner.model_validate_json(text)
    except ValidationError:
        raise LockedError(
            f"{where}: found a lock file that cannot be read; expected one written by bluegreen. "
            "Make sure that nothing runs on this cluster, then remove that file"
        ) from None


def lock_order(held: str | None, members: Iterable[str], hosts_down: Iterable[str]) -> list[str]:
    """Return the members whose lock is taken, in order: all that are not down, by name."""
    down = set(hosts_down)
    return sorted((set(members) | ({held} if held else set())) - down)


def locks_suffice(taken: Iterable[str], held: str | None, members: Iterable[str], hosts_down: Iterable[str]) -> bool:
    """Tell whether the taken locks are the held member's and a majority of all that are not down."""
    counted = set(members) - set(hosts_down)
    locked = set(taken) & counted
    return (held is None or held in locked) and len(locked) * 2 > len(counted)
