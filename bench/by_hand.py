"""The checkpoint and the rollback as a careful expert would script them: psql, patronictl, pg_ctl and ssh, no Airflow.

It knows one cluster and one server version (12 and newer), and has no retries and no way back; the order, and
what has to be proven before the next step, are those of the DAGs.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from shlex import quote
from typing import Any, TypeVar

import httpx
import psycopg
import yaml
from lab.cluster import Lab

T = TypeVar("T")

HELD_TAGS = {"nofailover": True, "noloadbalance": True, "nosync": True, "clonefrom": False}
MARK = """
select txid_current()::text,
       ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int,
       (select system_identifier::text from pg_control_system()),
       pg_create_restore_point('by_hand')
"""
PROOF = """
select pg_is_in_recovery(),
       case when %(xid)s::bigint >= txid_snapshot_xmax(txid_current_snapshot()) then false
            else coalesce(txid_status(%(xid)s::bigint) = 'committed', true) end,
       coalesce(pg_last_wal_receive_lsn() >= %(lsn)s::pg_lsn, false)
"""

STOP = """
mv "$yaml" "$yaml.aside"
$ctl stop "$name" >/dev/null
"""
DOWN = """
"$bin/pg_controldata" "$data" | grep -qE 'cluster state: +shut down( in recovery)?$'
! find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$data" 2>/dev/null | grep -q .
cd "$data/pg_wal"
for file in *.history; do if [ -f "$file" ]; then echo "== $file"; cat "$file"; fi; done
"""
RECOVER = """
psql() { "$bin/psql" -X -A -t -q -v ON_ERROR_STOP=1 -h "$sockets" -p "$port" -U postgres -d postgres "$@"; }
cd "$data"
cp -p pg_hba.conf pg_hba.conf.kept; cp -p pg_ident.conf pg_ident.conf.kept
cp -p postgresql.auto.conf postgresql.auto.conf.kept
echo 'local all postgres peer map=by_hand' > pg_hba.conf
echo "by_hand $(id -un) postgres" > pg_ident.conf
cat >> postgresql.auto.conf <<END
recovery_target_xid = '$xid'
recovery_target_action = 'promote'
recovery_target_timeline = 'current'
restore_command = '/bin/false'
primary_conninfo = ''
primary_slot_name = ''
recovery_min_apply_delay = 0
archive_command = ''
END
rm -f standby.signal; : > recovery.signal; sync
options=$(sed 's/^[^ ]* "-D" "[^"]*" //' postmaster.opts)
"$bin/pg_ctl" start -D "$data" -w -t 60 -l "$log" -o "$options" </dev/null >/dev/null 2>&1
tries=0
until [ "$(psql -c 'select pg_is_in_recovery()')" = f ]; do
  tries=$((tries + 1)); [ "$tries" -lt 600 ] || exit 9; sleep 0.05
done
history=$(ls pg_wal/*.history | sort | tail -n 1)
line=$(grep . "$history" | tail -n 1)
case "$line" in "$timeline	"*"	after transaction $xid") ;; *) echo "wrong branch: $line" >&2; exit 8 ;; esac
for file in pg_hba.conf pg_ident.conf postgresql.auto.conf; do mv "$file.kept" "$file"; done
"$bin/pg_ctl" reload -D "$data" >/dev/null
basename "$history"; cat "$history"
"""
REMOVE = """
"$patronictl" -c "$yaml.aside" remove "$scope" >/dev/null <<END
$scope
Yes I am aware
END
"""
START = """
if [ -e "$yaml.before" ]; then mv "$yaml.before" "$yaml"; rm -f "$yaml.aside"; else mv "$yaml.aside" "$yaml"; fi
$ctl start "$name" >/dev/null
"""
REWIND = """
export PGPASSWORD
"$bin/pg_rewind" --target-pgdata="$data" --source-server="$source" 2>&1
"""


@dataclass(frozen=True)
class Held:
    """A checkpoint: who is held, before which transaction."""

    held: str
    leader: str
    others: tuple[str, ...]
    xid: int
    lsn: str
    timeline: int
    system: str
    config: dict[str, Any]


class ByHand:
    """An expert with a terminal open on every node.

    Use it as a context manager: the SSH connections are open before the work begins, and kept.

    :param woken: after ``POST /reload`` also wake Patroni, which otherwise reads its file within ``loop_wait``.
    """

    def __init__(self, lab: Lab, *, woken: bool = False) -> None:
        self.lab = lab
        self.woken = woken
        self._stack = contextlib.ExitStack()
        self._sockets = ""
        self._sql: dict[str, psycopg.Connection[Any]] = {}
        self._http = httpx.Client(timeout=5, trust_env=False)
        self._pool = ThreadPoolExecutor(max_workers=8)

    def __enter__(self) -> ByHand:
        self._sockets = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="by-hand-"))
        self._stack.callback(self._http.close)
        self._stack.callback(self._pool.shutdown)
        self._each(self.lab.names, lambda name: self._node(name, "true"))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for name in self.lab.names:
            subprocess.run([*self._ssh(name), "-O", "exit", name], capture_output=True, check=False)
        for connection in self._sql.values():
            connection.close()
        self._stack.close()

    def _ssh(self, name: str) -> list[str]:
        options = {"ControlMaster": "auto", "ControlPath": f"{self._sockets}/{name}", "ControlPersist": "yes"}
        return ["ssh", "-F", self.lab.info["ssh_config"], *(f"-o{key}={value}" for key, value in options.items())]

    def _node(self, name: str, text: str, seconds: float = 60, **values: object) -> str:
        """Run a script on a node; the values arrive as shell variables, on standard input like the rest."""
        node = self.lab.nodes[name]
        known = {
            "name": name,
            "yaml": node.patroni_config,
            "data": node.data_dir,
            "bin": self.lab.info["bin_dir"],
            "ctl": self.lab.info["ctl"],
            **values,
        }
        script = "set -eu\n" + "".join(f"{key}={quote(str(value))}\n" for key, value in known.items()) + text
        # The master that ssh leaves behind keeps standard error, so that is a file and no pipe.
        with tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(
                [*self._ssh(name), name, "sh -s"],
                input=script,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=seconds,
                check=False,
            )
            errors.seek(0)
            if done.returncode:
                raise RuntimeError(f"{name}: status {done.returncode}: {errors.read()[-400:]} {done.stdout[-400:]}")
        return done.stdout

    def _each(self, names: Iterator[str] | list[str] | tuple[str, ...], work: Callable[[str], T]) -> dict[str, T]:
        names = list(names)
        return dict(zip(names, self._pool.map(work, names), strict=True))

    def _ask(self, name: str, query: str, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
        connection = self._sql.get(name)
        if connection is None or connection.closed:
            connection = self._sql[name] = self.lab.connect(name, "postgres")
        row = connection.execute(query.encode(), values).fetchone()
        assert row is not None
        return tuple(row)

    def _get(self, name: str, path: str) -> Any:
        return self._http.get(f"{self.lab.nodes[name].rest}/{path}").json()

    def checkpoint(self) -> Held:
        """Hold a standby, mark, and prove the mark received and not applied."""
        members = {one["name"]: one for one in self._get(self.lab.names[0], "cluster")["members"]}
        (leader,) = (name for name, one in members.items() if one["role"] == "leader")
        replicas = [name for name in members if name != leader]
        if any(
            members[name]["state"] != "streaming" or members[name]["timeline"] != members[leader]["timeline"]
            for name in replicas
        ):
            raise RuntimeError(f"not all stream: {members}")
        held = replicas[-1]
        config = self._get(leader, "config")
        if config.get("pause"):
            raise RuntimeError("maintenance mode")
        self._hold(held, config)
        xid, timeline, system, _ = self._ask(leader, MARK)
        (lsn,) = self._ask(leader, "select pg_current_wal_insert_lsn()::text")
        record = Held(held, leader, tuple(n for n in replicas if n != held), int(xid), lsn, timeline, system, config)
        self._until(lambda: self._received(record))
        return record

    def _hold(self, held: str, config: dict[str, Any]) -> None:
        before = self._node(held, 'cp -p "$yaml" "$yaml.before"; cat "$yaml"')
        edited = yaml.safe_load(before)
        local = edited["postgresql"]
        effective = local.get("recovery_conf") or (config.get("postgresql") or {}).get("recovery_conf") or {}
        local["recovery_conf"] = {**effective, "recovery_min_apply_delay": "20d"}
        local.setdefault("parameters", {})["hot_standby_feedback"] = "off"
        edited.setdefault("tags", {}).update(HELD_TAGS)
        write = 'cp -p "$yaml" "$yaml.new"; printf %s "$edited" > "$yaml.new"; mv "$yaml.new" "$yaml"'
        self._node(held, write, edited=yaml.safe_dump(edited, sort_keys=False))
        rest = self.lab.nodes[held].rest
        self._http.post(f"{rest}/reload").raise_for_status()
        if self.woken:
            self._http.patch(f"{rest}/config", json={"by_hand_wakes_the_loop": None}).raise_for_status()

        def in_effect() -> bool:
            settings = self._ask(
                held, "select current_setting('recovery_min_apply_delay'), current_setting('hot_standby_feedback')"
            )
            tags = self._get(held, "patroni").get("tags", {})
            return settings == ("20d", "off") and tags == {name: True for name, on in HELD_TAGS.items() if on}

        self._until(in_effect)

    def _received(self, record: Held) -> bool:
        values = {"xid": record.xid, "lsn": record.lsn}
        standby, visible, received = self._ask(record.held, PROOF, values)
        if visible or not standby:
            raise RuntimeError("the hold came too late")
        return received and all(self._ask(name, PROOF, values)[2] for name in record.others)

    def rollback(self, record: Held) -> dict[str, float]:
        """Bring the state at the mark back into service on all members; return seconds by step."""
        clock = _Clock()
        if not self._received(record):
            raise RuntimeError("the checkpoint is lost")
        self._close_sql()
        histories = self._stop(record)
        clock.lap("stop")
        history = self._recover(record, histories)
        clock.lap("recover")
        self._remove(record)
        clock.lap("remove")
        self._take_over(record)
        clock.lap("take_over")
        self._each([record.leader, *record.others], lambda name: self._rejoin(record, name, history))
        self._until(lambda: not self.lab.trouble())
        clock.lap("rejoin")
        return clock.laps

    def _stop(self, record: Held) -> dict[str, str]:
        """Stop the other replicas and the held member, then the leader; return the others' histories."""
        stopped = self._pool.submit(self._down, record.held)
        found = self._each(record.others, self._down)
        found[record.leader] = self._down(record.leader)
        stopped.result()
        return {name: text for member in found.values() for name, text in _histories(member).items()}

    def _down(self, name: str) -> str:
        self._node(name, STOP)
        return self._node(name, DOWN)

    def _recover(self, record: Held, histories: dict[str, str]) -> tuple[str, str]:
        node = self.lab.nodes[record.held]
        seeds = "".join(
            f'[ -e "$data/pg_wal/{name}" ] || printf %s {quote(text)} > "$data/pg_wal/{name}"\n'
            for name, text in histories.items()
        )
        found = self._node(
            record.held,
            seeds + RECOVER,
            seconds=120,
            xid=record.xid & 0xFFFFFFFF,
            timeline=record.timeline,
            sockets=node.socket_dir,
            port=node.port,
            log=f"{node.data_dir}.by_hand.log",
        )
        name, _, text = found.partition("\n")
        return name, text

    def _remove(self, record: Held) -> None:
        values = {"patronictl": self.lab.info["patronictl"], "scope": self.lab.name}
        self._node(record.held, REMOVE, **values)
        if "uninitialized" not in self._node(record.held, '"$patronictl" -c "$yaml.aside" list "$scope"', **values):
            raise RuntimeError("the DCS still holds the cluster")

    def _take_over(self, record: Held) -> None:
        cached = self.lab.nodes[record.held].data_dir / "patroni.dynamic.json"
        self._node(
            record.held,
            'printf %s "$config" > "$cached"\n' + START,
            config=json.dumps(record.config),
            cached=cached,
        )
        self._until(lambda: self._leads(record.held))
        self._ask(record.held, "select pg_create_restore_point('by_hand_restored'), txid_current()")

    def _leads(self, name: str) -> bool:
        try:
            if self._http.get(f"{self.lab.nodes[name].rest}/primary").status_code != 200:
                return False
        except httpx.HTTPError:
            return False
        leaders = [one["name"] for one in self._get(name, "cluster")["members"] if one["role"] == "leader"]
        return leaders == [name]

    def _rejoin(self, record: Held, name: str, history: tuple[str, str]) -> None:
        user = yaml.safe_load(self._node(name, 'cat "$yaml.aside"'))["postgresql"]["authentication"]["rewind"]
        leader = self.lab.nodes[record.held]
        source = f"host={leader.host} port={leader.port} user={user['username']} dbname=postgres"
        self._node(name, REWIND, seconds=600, source=source, PGPASSWORD=user["password"])
        self._node(name, START)
        self._until(lambda: name not in " ".join(self.lab.trouble()))
        if self._node(name, 'cat "$data/pg_wal/$history"', history=history[0]) != history[1]:
            raise RuntimeError(f"{name} has another history")

    def _close_sql(self) -> None:
        for connection in self._sql.values():
            connection.close()
        self._sql.clear()

    @staticmethod
    def _until(look: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not look():
            if time.monotonic() > deadline:
                raise RuntimeError("timed out")
            time.sleep(0.05)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._at, 3)
        self._at = now


def _histories(text: str) -> dict[str, str]:
    parts = re.split(r"^== (\S+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def main() -> None:
    """One checkpoint, and one rollback to it, on the lab that LAB_RUN names."""
    lab = Lab.load()
    with ByHand(lab) as hand:
        begin = time.monotonic()
        record = hand.checkpoint()
        print(f"checkpoint after {time.monotonic() - begin:.2f} s: {record}")
        lab.sql(record.leader, "create table after_the_mark ()", user="release")
        print(f"rollback: {hand.rollback(record)}")
        for name in lab.names:
            print(name, lab.sql(name, "select count(*) from pg_class where relname = 'after_the_mark'"))


if __name__ == "__main__":
    main()
