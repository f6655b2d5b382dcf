"""What the whole cluster looks like, and whether that is what it should be.

`look` takes a picture of every member, its files and the DCS; `verdict` compares it with what is expected and
raises with a table of everything that differs; `unchanged` compares two pictures.
"""

from __future__ import annotations

import base64
import io
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from lab.cluster import Lab, Member
from psycopg import sql
from rich.console import Console
from rich.table import Table

TABLES = """
select n.nspname, c.relname,
    (select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull, ', '
            order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
    (select string_agg(pg_get_indexdef(i.indexrelid), '; ' order by i.indexrelid) from pg_index i
        where i.indrelid = c.oid) as indexes,
    pg_get_userbyid(c.relowner) as owner
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and n.nspname not in ('pg_catalog', 'information_schema')
    and n.nspname not like 'pg_temp%' order by 1, 2
"""

Contents = dict[str, str]

# what lies beside the YAML of every member while a checkpoint is held
JOURNALS = frozenset({".bluegreen-journal", ".bluegreen-runbook"})


@dataclass
class MemberPicture:
    """One member: what its server says, what its Patroni says, and what lies on its disk."""

    contents: Contents | None = None
    system_identifier: str = ""
    in_recovery: bool | None = None
    timeline: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    slots: list[str] = field(default_factory=list)
    primary_status: int = 0
    role: str = ""
    state: str = ""
    tags: dict[str, Any] = field(default_factory=dict)
    streams: bool = False
    history: str = ""
    histories: dict[str, str] = field(default_factory=dict)
    leftovers: frozenset[str] = frozenset()
    yaml: tuple[bytes, int, int] | None = None
    auto_conf: bytes | None = None
    hba: bytes | None = None
    signals: frozenset[str] = frozenset()
    error: str = ""


@dataclass
class Picture:
    """The whole cluster at one moment."""

    members: dict[str, MemberPicture]
    leader: str | None
    dcs: dict[str, str]

    @property
    def config(self) -> dict[str, Any]:
        """The dynamic configuration."""
        return json.loads(self.dcs.get("config", "null"))


def contents(lab: Lab, node: str) -> Contents:
    """Everything that users have on this member: roles, and per table its schema, owner and a sum over its rows."""
    found: Contents = {}
    with lab.connect(node, "postgres") as connection:
        names = connection.execute(
            "select datname from pg_database where datallowconn and not datistemplate order by 1"
        )
        databases = [name for (name,) in names]
        found["roles"] = ", ".join(name for (name,) in connection.execute("select rolname from pg_roles order by 1"))
    for database in databases:
        found[f"{database}"] = "database"
        # a standby that was let go on may wait within a transaction that has locked its tables
        with lab.connect(node, database, options="-c lock_timeout=5s") as connection:
            for schema, table, columns, indexes, owner in connection.execute(TABLES).fetchall():
                query = sql.SQL("select count(*), md5(string_agg(t::text, e'\\n' order by t::text)) from {} t")
                count, total = connection.execute(query.format(sql.Identifier(schema, table))).fetchone()
                found[f"{database}.{schema}.{table}"] = f"{count} rows {total}; {columns}; {indexes}; {owner}"
    return found


def dcs(lab: Lab) -> dict[str, str]:
    """Every key of the cluster in etcd, without the common prefix."""
    prefix = f"/service/{lab.name}/"
    return {_text(pair["key"]).removeprefix(prefix): _text(pair.get("value", "")) for pair in _etcd(lab)}


def initialize_revision(lab: Lab) -> str:
    """When the cluster was initialized, as etcd counts."""
    return next((pair["create_revision"] for pair in _etcd(lab) if _text(pair["key"]).endswith("/initialize")), "")


def put_key(lab: Lab, key: str, value: str) -> None:
    """Write a key of the cluster in etcd, where a member would.

    :param key: without the common prefix.
    """
    _ask_etcd(lab, "put", key=_b64(f"/service/{lab.name}/{key}"), value=_b64(value))


def delete_key(lab: Lab, key: str) -> None:
    """Take a key of the cluster out of etcd; one that is not there is no error."""
    _ask_etcd(lab, "deleterange", key=_b64(f"/service/{lab.name}/{key}"))


def _etcd(lab: Lab) -> list[dict[str, str]]:
    prefix = f"/service/{lab.name}/"
    end = prefix[:-1] + chr(ord("/") + 1)
    found: list[dict[str, str]] = _ask_etcd(lab, "range", key=_b64(prefix), range_end=_b64(end)).get("kvs", [])
    return found


def _ask_etcd(lab: Lab, verb: str, **body: str) -> dict[str, Any]:
    answer = httpx.post(f"http://{lab.info['dcs']}/v3/kv/{verb}", json=body, timeout=5, trust_env=False)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(text: str) -> str:
    return base64.b64decode(text).decode()


def history_files(member: Member) -> dict[str, str]:
    """The timeline histories in a member's pg_wal."""
    return {path.name: path.read_text() for path in sorted((member.data_dir / "pg_wal").glob("*.history"))}


def leftovers(member: Member) -> frozenset[str]:
    """What lies beside Patroni's YAML, and in the data directory, with our name on it."""
    found = {
        path.name.removeprefix(member.patroni_config.name)
        for path in member.patroni_config.parent.glob("*.bluegreen-*")
    }
    found |= {f"data/{path.name}" for path in member.data_dir.glob("*bluegreen*")}
    found |= {f"data/pg_wal/{path.name}" for path in (member.data_dir / "pg_wal").glob("*bluegreen*")}
    return frozenset(found)


def look(lab: Lab) -> Picture:
    """Take a picture of the whole cluster."""
    members = {one["name"]: one for one in lab.cluster()["members"]}
    leaders = [name for name, one in members.items() if one["role"] in ("leader", "master", "primary")]
    leader = leaders[0] if len(leaders) == 1 else None
    streaming: set[str] = set()
    if leader:
        try:
            query = "select application_name from pg_stat_replication where state = 'streaming'"
            streaming = {name for (name,) in lab.sql(leader, query, database="postgres")}
        except psycopg.Error:
            streaming = set()
    pictures = {name: _member(lab, node, members.get(name, {}), streaming) for name, node in lab.nodes.items()}
    return Picture(pictures, leader, dcs(lab))


def _member(lab: Lab, node: Member, known: dict[str, Any], streaming: set[str]) -> MemberPicture:
    found = MemberPicture(
        role=known.get("role", "not in the cluster"),
        state=known.get("state", ""),
        timeline=known.get("timeline"),
        streams=node.name in streaming,
        histories=history_files(node),
        leftovers=leftovers(node),
        yaml=_file(node.patroni_config),
        auto_conf=_bytes(node.data_dir / "postgresql.auto.conf"),
        hba=_bytes(node.data_dir / "pg_hba.conf"),
        signals=frozenset(path.name for path in node.data_dir.glob("*.signal")),
    )
    found.history = found.histories.get(f"{found.timeline or 0:08X}.history", "")
    try:
        found.primary_status = lab.http.get(f"{node.rest}/primary", timeout=3).status_code
        found.tags = (lab.patroni(node.name) or {}).get("tags", {})
    except httpx.HTTPError as error:
        found.error = f"Patroni: {error}"
    try:
        with lab.connect(node.name, "postgres") as connection:
            query = "select (select system_identifier from pg_control_system())::text, pg_is_in_recovery()"
            found.system_identifier, found.in_recovery = connection.execute(query).fetchone()
            names = ["recovery_min_apply_delay", "hot_standby_feedback", "archive_mode", "archive_command"]
            rows = connection.execute("select name, setting from pg_settings where name = any(%s)", [names])
            found.settings = dict(rows.fetchall())
            found.slots = [
                name for (name,) in connection.execute("select slot_name from pg_replication_slots order by 1")
            ]
        found.contents = contents(lab, node.name)
    except psycopg.Error as error:
        found.error = f"SQL: {' '.join(str(error).split())}"
    return found


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _file(path: Path) -> tuple[bytes, int, int] | None:
    if not path.exists():
        return None
    return path.read_bytes(), path.stat().st_mode, path.stat().st_uid


class Verdict(AssertionError):
    """The cluster is not as it should be."""


def verdict(lab: Lab, *, before: Picture, rows: Contents, seconds: float = 45, **expected: Any) -> Picture:
    """Raise unless the whole cluster is as expected; return its picture.

    :param expected: as in `picture_faults`.
    :param seconds: how long replicas have time to catch up.
    """
    deadline = time.monotonic() + seconds
    while True:
        picture = look(lab)
        faults = picture_faults(picture, before, rows, **expected)
        if not faults:
            return picture
        if time.monotonic() > deadline:
            raise Verdict(_table(picture, faults))
        time.sleep(0.5)


def picture_faults(
    picture: Picture,
    before: Picture,
    rows: Contents,
    *,
    leader: str | None = None,
    timeline: int | None = None,
    after_xid: int | None = None,
    branch_is_last: bool = True,
    held: str | None = None,
    held_rows: Contents | None = None,
    held_streams: bool = True,
    held_leftovers: frozenset[str] = frozenset(),
) -> list[str]:
    """Everything in a picture that is not as expected.

    :param before: the fresh cluster: YAML files, dynamic configuration and server files must be those again.
    :param rows: what every member must have.
    :param leader: who must lead; None for anybody but the held one.
    :param timeline: the number that must be current.
    :param after_xid: the transaction after which the current timeline must have begun.
    :param branch_is_last: whether the current timeline itself must have begun there, or one of those that led to it.
    :param held: the member that must be held; None when nothing may be left of a checkpoint.
    :param held_rows: what the held member must have; by default what the fresh cluster had.
    :param held_streams: whether the held member must be receiving.
    :param held_leftovers: what lies there beside journal, runbook and original.
    """
    faults = [f"{name}: {one.error}" for name, one in picture.members.items() if one.error]
    if picture.leader is None or picture.leader == held or (leader and picture.leader != leader):
        return [*faults, f"the leader is {picture.leader}, expected {leader or f'one that is not {held}'}"]
    head = picture.members[picture.leader]
    if timeline and head.timeline != timeline:
        faults.append(f"the current timeline is {head.timeline}, expected {timeline}")
    if after_xid is not None:
        lines = head.history.strip().splitlines()
        branch = re.compile(rf"\d+\t[0-9A-F]+/[0-9A-F]+\tafter transaction {after_xid & 0xFFFFFFFF}")
        if not any(branch.fullmatch(line) for line in (lines[-1:] if branch_is_last else lines)):
            faults.append(f"the history is {head.history!r}, expected a line 'after transaction {after_xid}'")
    for name, one in picture.members.items():
        was = before.members[name]
        is_leader, is_held = name == picture.leader, name == held
        wanted_rows = (held_rows or was.contents) if is_held else rows
        wanted: dict[str, Any] = {
            "primary_status": 200 if is_leader else 503,
            "in_recovery": not is_leader,
            "timeline": head.timeline,
            "history": head.history,
            "system_identifier": was.system_identifier,
            "streams": one.streams if is_leader or (is_held and not held_streams) else True,
            "auto_conf": was.auto_conf,
            "hba": was.hba,
            "signals": frozenset() if is_leader else frozenset({"standby.signal"}),
        }
        if is_held:
            wanted |= {"leftovers": JOURNALS | held_leftovers | {".bluegreen-original"}}
            if not held_streams:
                del wanted["timeline"], wanted["history"]
        else:
            left = JOURNALS if held else frozenset()
            wanted |= {"yaml": was.yaml, "tags": was.tags, "settings": was.settings, "leftovers": left}
        for key, value in wanted.items():
            if (got := getattr(one, key)) != value:
                faults.append(f"{name}: {key} is {_short(got)}, expected {_short(value)}")
        faults += [f"{name}: {line}" for line in _differences(one.contents or {}, wanted_rows or {})]
        if extra := set(one.slots) - set(picture.members):
            faults.append(f"{name}: slots of nobody: {', '.join(sorted(extra))}")
    return faults + _dcs_faults(picture, before)


def _dcs_faults(picture: Picture, before: Picture) -> list[str]:
    faults = []
    wanted = {"config", "initialize", "leader", "status", *(f"members/{name}" for name in picture.members)}
    keys = set(picture.dcs) - {"history"}
    if keys != wanted:
        faults.append(f"the DCS has the keys {sorted(keys)}, expected {sorted(wanted)}")
    identifier = next(iter(before.members.values())).system_identifier
    for key, value in (("initialize", identifier), ("leader", picture.leader)):
        if picture.dcs.get(key) != value:
            faults.append(f"the DCS has {key} = {picture.dcs.get(key)}, expected {value}")
    if picture.config != before.config:
        faults.append(f"the dynamic configuration is {picture.config}, expected {before.config}")
    slots = json.loads(picture.dcs.get("status", "{}")).get("slots") or {}
    if extra := set(slots) - set(picture.members):
        faults.append(f"the DCS has slots of nobody: {', '.join(sorted(extra))}")
    return faults


def _differences(found: Contents, wanted: Contents) -> list[str]:
    return [
        f"{key} is {_short(found.get(key, 'missing'))}, expected {_short(wanted.get(key, 'missing'))}"
        for key in sorted(set(found) | set(wanted))
        if found.get(key) != wanted.get(key)
    ]


def unchanged(lab: Lab, before: Picture, seconds: float = 10) -> None:
    """Raise unless the whole cluster is exactly as in the picture."""
    deadline = time.monotonic() + seconds
    while True:
        picture, faults = look(lab), []
        for name, was in before.members.items():
            now = picture.members[name]
            faults += [
                f"{name}: {key} is {_short(getattr(now, key))}, was {_short(value)}"
                for key, value in vars(was).items()
                if getattr(now, key) != value
            ]
        if picture.leader != before.leader:
            faults.append(f"the leader is {picture.leader}, was {before.leader}")
        stable = {"config", "initialize", "leader", "history"}
        faults += [
            f"DCS: {key} is {_short(picture.dcs.get(key))}, was {_short(before.dcs.get(key))}"
            for key in sorted(set(picture.dcs) | set(before.dcs))
            if (key in stable and picture.dcs.get(key) != before.dcs.get(key))
            or (key in picture.dcs) != (key in before.dcs)
        ]
        if not faults:
            return
        if time.monotonic() > deadline:
            raise Verdict(_table(picture, ["changed, though nothing may change:", *faults]))
        time.sleep(0.5)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:100]}...{text[-50:]}"


def _table(picture: Picture, faults: list[str]) -> str:
    table = Table(title="the cluster as it is", title_justify="left")
    rows = ("role", "state", "timeline", "history", "streams", "primary_status", "in_recovery", "leftovers", "slots")
    table.add_column("")
    for name in picture.members:
        table.add_column(name)
    for row in rows:
        table.add_row(row, *(str(_plain(getattr(one, row))) for one in picture.members.values()))
    orders = [str((one.contents or {}).get("app.public.orders", "missing"))[:60] for one in picture.members.values()]
    table.add_row("orders", *orders)
    out = io.StringIO()
    Console(file=out, width=150, highlight=False).print(table)
    return "\n" + out.getvalue() + "\n".join(faults)


def _plain(value: Any) -> Any:
    return ", ".join(sorted(value)) if isinstance(value, frozenset | list) else value
