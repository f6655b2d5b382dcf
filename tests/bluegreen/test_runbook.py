"""The runbook, really run by bash, on nodes that are folders: their programs are fakes of a few lines."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase as Step
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bluegreen.traps import TRAPS

from bluegreen.checkpoint import Checkpoint, MemberAddress, Owner, Phase, parse_owner
from bluegreen.exceptions import RefusedError
from bluegreen.runbook import Place, runbook

NAMES = ["n1", "n2", "n3"]
HELD, LEADER = "n2", "n1"
XID, MARK, RESTORE_POINT = (1 << 32) + 747, "0/30001C8", "0/3000140"
LINE = "1\t0/30001A0\tafter transaction 747"
COMMIT = "rmgr: Transaction len (rec/tot): 34/ 34, tx: 747, lsn: 0/03000178, prev 0/03000140, desc: COMMIT 2026-11-26"

PG_CTL = """
for word; do last=$word; done
case $1 in
  status) test -e "$data/postmaster.pid" ;;
  stop) rm -f "$data/postmaster.pid" ;;
  start) touch "$data/postmaster.pid"
    if [ "$(cat "$data/timeline")" = 1 ]; then
      if [ ! -e "$data/recovery.signal" ]; then touch "$root/went-past-the-mark"; exit 1; fi
      rm "$data/recovery.signal"
      touch "$data/postmaster.opts"; sed -i 's/^/&/' "$data/postmaster.opts"
      number=2; if [ -e "$data/pg_wal/00000002.history" ]; then number=3; fi
      cp "$root/line" "$data/pg_wal/0000000$number.history"
      if [ -e "$root/crashes" ]; then
        # its checkpoint had begun
        echo 'shutting down' > "$data/state"; rm "$root/crashes" "$data/postmaster.pid"; exit 1
      fi
      rm -f "$data/state"
      echo $number > "$data/timeline"
      mv "$data/pg_wal/000000010000000000000003" "$data/pg_wal/000000010000000000000003.partial"
    fi ;;
esac
"""
# The leader is who runs and was promoted; the others follow it.
PATRONICTL = """
case "$3" in
  reload) test ! -e "$root/reload-fails" && echo "$*" >> "$root/reloaded" ;;
  remove) cat > "$root/answers"; touch "$root/removed" ;;
  list) if [ "$4" != -f ]; then echo '+ Cluster: orders (uninitialized) +'; exit 0; fi
    if [ "$5" = json ]; then echo '[]'; exit 0; fi
    printf 'Cluster\\tMember\\tHost\\tRole\\tState\\tTL\\tLag in MB\\n'
    leader=$(cat "$root/leader") timeline=1
    if [ -e "$root/removed" ]; then leader=n2 timeline=$(cat "$root/n2/data/timeline"); fi
    for name in $(cat "$root/members"); do
      if [ -e "$root/$name/patroni-runs" ]; then
        if [ $name = $leader ]; then role=Leader state=running; else role=Replica state=streaming; fi
        printf 'orders\\t%s\\t127.0.0.1\\t%s\\t%s\\t%s\\t\\n' $name $role $state $timeline
        if [ -e "$root/removed" ]; then cp "$root/line" "$root/$name/data/pg_wal/0000000$timeline.history"; fi
      fi
    done ;;
esac
"""
SSH = r"""#!/bin/sh
# ssh -- HOST COMMAND: run it here; the call of the number in the file "fails" fails, before or after it did its work
shift 2
root=$(dirname "$0")
call=$(($(cat "$root/calls") + 1)); echo $call > "$root/calls"
read -r number when < "$root/fails"
if [ "$call" = "$number" ] && [ "$when" = before ]; then echo 'ssh: no route to host' >&2; exit 255; fi
sh -c "$*"
status=$?
if [ "$call" = "$number" ]; then echo 'ssh: connection reset' >&2; exit 255; fi
exit $status
"""


class Nodes:
    """Three members in folders, of which the second one is held."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.control = {
            "Database system identifier": "7301",
            "Database cluster state": "in archive recovery",
            "Latest checkpoint's REDO location": "0/2000028",
            "Minimum recovery ending location": "0/3000100",
            "Bytes per WAL segment": "16777216",
        }
        self.waldump = f"echo '{COMMIT}'"
        # asked for the mark, then, once it was started, whether it is in recovery
        self.psql = f"case $(cat {root}/asked) in *'select pg_is_in_recovery'*) echo f ;; *) echo 't|f|t' ;; esac"
        root.mkdir(exist_ok=True)
        (root / "line").write_text(LINE + "\n")
        (root / "calls").write_text("0")
        (root / "members").write_text(" ".join(NAMES))
        (root / "leader").write_text(LEADER)
        (root / "fails").write_text("0\n")
        self.program(root / "ssh", SSH)
        self.program(root / "path" / "sleep", "exit 0")
        for name in NAMES:
            wal = root / name / "data" / "pg_wal"
            wal.mkdir(parents=True)
            for file in ("000000010000000000000002", "000000010000000000000003"):
                (wal / file).touch()
            (wal / "not a history.history").write_text("$(touch executed)")
            data = wal.parent
            for file in ("postmaster.pid", "standby.signal"):
                (data / file).touch()
            (data / "pg_hba.conf").write_text("local all all scram-sha-256\n")
            (data / "pg_ident.conf").write_text("")
            (data / "timeline").write_text("1\n")
            (data / "postgresql.auto.conf").write_text("work_mem = '8MB'\n")
            (data / "postmaster.opts").write_text(f'/bin/postgres "-D" "{data}" "--port=5432" "--cluster_name=it\'s"\n')
            (root / name / "patroni.yml").write_text("held: yes\n")
            (root / name / "patroni.yml.bluegreen-original").write_text("held: no\n")
            (root / name / "patroni.yml.bluegreen-journal").write_text('{\n "id": "bg_1",\n "label": ""\n}\n')
            (root / name / "patroni-runs").touch()
        self.places = {
            name: Place(
                ssh_host="127.0.0.1",
                config=f"{root}/{name}/patroni.yml",
                data_dir=f"{root}/{name}/data",
                bin_dir=f"{root}/{name}/bin",
                os_user=pwd.getpwuid(os.getuid()).pw_name,
                start=f"touch {root}/{name}/patroni-runs {root}/{name}/data/postmaster.pid",
                stop=f"rm -f {root}/{name}/patroni-runs",
                status=f"test -e {root}/{name}/patroni-runs",
                patronictl=f"{root}/{name}/bin/patronictl",
            )
            for name in NAMES
        }

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def text(self) -> str:
        return runbook(checkpoint(server_files=self.files()), self.places, superuser="postgres")

    def files(self) -> dict[str, str]:
        data = self.root / HELD / "data"
        return {
            "hba_file": f"{data}/pg_hba.conf",
            "ident_file": f"{data}/pg_ident.conf",
            "unix_socket_directories": '"/tmp", /run',
            "port": "5432",
        }

    def run(self, text: str | None = None, *, fails_at: int = 0, when: str = "", **env: str) -> tuple[int, str]:
        """Run the runbook; return its status and all that it says."""
        for name in NAMES:
            head = f"root={self.root}\ndata={self.root}/{name}/data\n"
            bin_dir = self.root / name / "bin"
            control = "\n".join(f"{key}:   {value}" for key, value in self.control.items())
            on = 'Latest checkpoint\'s TimeLineID:       $(cat "$data/timeline")'
            changed = "s/^Database cluster state:.*/Database cluster state:   $(cat $data/state)/"
            show = f"if [ -e $data/state ]; then sed \"{changed}\"; else cat; fi <<'END' |\n{control}\nEND\n"
            show += f'sed "s/7301/$(cat $data/identifier 2>/dev/null || echo 7301)/"\necho "{on}"'
            self.program(bin_dir / "pg_controldata", head + show)
            self.program(bin_dir / "pg_waldump", f'printf "%s\\n" "$*" >> {self.root}/waldump\n{self.waldump}')
            self.program(bin_dir / "psql", f"cat >> {self.root}/asked\n{head}{self.psql}")
            self.program(bin_dir / "pg_ctl", head + PG_CTL)
            self.program(bin_dir / "pg_isready", f"test -e {self.root}/lives && exit 1; exit 2")
            self.program(bin_dir / "patronictl", head + PATRONICTL)
        (self.root / "calls").write_text("0")
        (self.root / "fails").write_text(f"{fails_at} {when}\n")
        script = self.root / "rollback.sh"
        script.write_text(self.text() if text is None else text)
        done = subprocess.run(
            ["bash", str(script)],
            env={
                "PATH": f"{self.root}/path:{os.environ['PATH']}",
                "SSH": f"{self.root}/ssh",
                "CONFIRM": "orders",
                **env,
            },
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert not (self.root / "executed").exists()
        return done.returncode, done.stdout

    @property
    def calls(self) -> int:
        return int((self.root / "calls").read_text())

    def running(self) -> set[str]:
        return {name for name in NAMES if (self.root / name / "patroni-runs").exists()}


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def checkpoint(**changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": "bg_1",
        "cluster": "orders",
        "scope": "orders",
        "label": "release 1",
        "phase": Phase.HELD,
        "held": HELD,
        "leader": LEADER,
        "members": {
            name: MemberAddress(host="127.0.0.1", port=5432, api_url="http://127.0.0.1:8008", ssh_host="127.0.0.1")
            for name in NAMES
        },
        "server_version_num": 150018,
        "system_identifier": "7301",
        "taken_by": Owner(operation="checkpoint", dag_id="bluegreen_checkpoint", run_id="one"),
        "xid": XID,
        "lsn": MARK,
        "restore_point_lsn": RESTORE_POINT,
        "timeline": 1,
        "taken_at": "2026-11-26T12:00:00+00:00",
    }
    return Checkpoint(**values | changes)


def test_it_goes_through(nodes: Nodes) -> None:
    status, said = nodes.run()
    assert status == 0, said
    held = nodes.root / HELD
    assert nodes.running() == set(NAMES)
    assert (held / "patroni.yml").read_text() == "held: no\n"
    assert (held / "data" / "pg_hba.conf").read_text() == "local all all scram-sha-256\n"
    assert (held / "data" / "postgresql.auto.conf").read_text() == "work_mem = '8MB'\n"
    assert (nodes.root / "answers").read_text() == "orders\nYes I am aware\n"
    assert not list(nodes.root.glob("*/*.bluegreen-*"))


def test_each_step_says_what_it_must_print(nodes: Nodes) -> None:
    _, said = nodes.run()
    steps = re.findall(r"^== (\d)\. .+\n   must print: .+$", said, flags=re.MULTILINE)
    assert steps == ["0", "1", "2", "3", "4", "5", "6", "7"]


# BLUEGREEN_FAULTS=all breaks every connection, which takes minutes
STRIDE = 1 if os.environ.get("BLUEGREEN_FAULTS") == "all" else 15


@pytest.mark.parametrize(("when", "first"), [("before", 4), ("after", 11)])
def test_a_connection_that_fails_is_reported_and_the_runbook_goes_on_when_it_is_run_again(
    tmp_path: Path, when: str, first: int
) -> None:
    whole = Nodes(tmp_path / "whole")
    assert whole.run()[0] == 0
    for number in range(min(first, STRIDE), whole.calls + 1, STRIDE):
        nodes = Nodes(tmp_path / str(number))
        status, said = nodes.run(fails_at=number, when=when)
        if status:
            assert status == 1, said
            assert re.search(r"^STOPPED in step \d: .{30}", said, flags=re.MULTILINE), f"call {number}: {said}"
            assert "with status" not in said, f"call {number} was not foreseen: {said}"
            status, said = nodes.run()
            if "holds no checkpoint" in said:
                # only the answer to the very last removal was lost
                assert number == whole.calls
                status = 0
        assert status == 0, f"call {number}: {said}"
        assert nodes.running() == set(NAMES)
        assert not list(nodes.root.glob("*/*.bluegreen-*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Latest checkpoint's REDO location": "0/30001C8"}, "the last restart point of n2 is at 0/30001C8"),
        ({"Minimum recovery ending location": "0/30001D0"}, "hold changes up to 0/30001D0, past the mark"),
        ({"Latest checkpoint's REDO location": "0/1000028"}, "first the file that ends in 0000000000000001"),
        ({"Database cluster state": "in crash recovery"}, "the server of n2 was 'in crash recovery'"),
        ({"Database cluster state": "in production"}, "the server of n2 was 'in production'"),
        ({"Database cluster state": ""}, "the server of n2 was ''"),
    ],
)
def test_a_checkpoint_that_the_files_show_lost_stops_nothing(nodes: Nodes, changes: dict[str, str], words: str) -> None:
    nodes.control |= changes
    status, said = nodes.run()
    assert status == 1
    assert f"LOST: {words}" in said or (said.count("LOST: ") == 1 and words in said), said
    assert "STOPPED in step 0: checkpoint bg_1 is lost" in said
    assert "Nothing was changed" in said
    assert nodes.running() == set(NAMES)


def test_a_server_that_died_before_the_checkpoint_of_its_new_timeline_is_recovered_once_more(nodes: Nodes) -> None:
    (nodes.root / "crashes").touch()
    nodes.psql = f'test -e "$data/postmaster.pid" || exit 2\n{nodes.psql}'
    text = nodes.text()
    status, said = nodes.run(text)
    assert status == 1
    assert "STOPPED in step 3: n2 came to the mark, and its server ended before it was promoted there" in said
    assert f"mv {nodes.root}/n1/patroni.yml.bluegreen-aside" in said
    assert "POINT OF NO RETURN IS PASSED" not in said
    status, said = nodes.run(text)
    assert status == 0, said
    assert not (nodes.root / "went-past-the-mark").exists()
    assert (nodes.root / HELD / "data" / "timeline").read_text() == "3\n"
    assert nodes.running() == set(NAMES)


@pytest.mark.parametrize("changes", [{"Minimum recovery ending location": "none"}, {"Bytes per WAL segment": "0"}])
def test_figures_that_cannot_be_read_prove_nothing(nodes: Nodes, changes: dict[str, str]) -> None:
    nodes.control |= changes
    status, said = nodes.run()
    assert status == 1
    assert "STOPPED in step 0: it is not proven that n2 can go back" in said
    assert nodes.running() == set(NAMES)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("t|t|t", "LOST: n2 has replayed transaction"),
        ("f|t|t", "LOST: n2 is not a standby any more"),
        ("t||t", "n2 did not say whether the mark is visible there"),
        ("", "n2 did not say whether the mark is visible there"),
    ],
)
def test_what_the_server_has_replayed_is_asked(nodes: Nodes, answer: str, words: str) -> None:
    nodes.psql = f"echo '{answer}'"
    status, said = nodes.run()
    assert status == 1
    assert words in said
    assert "STOPPED in step 0" in said
    assert nodes.running() == set(NAMES)
    assert "txid_current_snapshot" in (nodes.root / "asked").read_text()


def test_a_server_that_cannot_be_asked_is_judged_by_its_files_before_another_is_stopped(nodes: Nodes) -> None:
    nodes.psql = "exit 2"
    stop = f"sed -i 's|0/3000100|0/4000000|' {nodes.root}/n2/bin/pg_controldata; rm -f {nodes.root}/n2/patroni-runs"
    nodes.places[HELD] = replace(nodes.places[HELD], stop=stop)
    status, said = nodes.run()
    assert status == 1
    assert "does not answer over its socket" in said
    assert "STOPPED in step 1: checkpoint bg_1 is lost" in said
    assert f"mv {nodes.root}/n2/patroni.yml.bluegreen-aside {nodes.root}/n2/patroni.yml" in said
    assert nodes.running() == {"n1", "n3"}


def test_the_wal_is_read_from_named_files_and_what_the_program_says_is_shown(nodes: Nodes) -> None:
    nodes.waldump = "echo 'pg_waldump: fatal: could not find a valid record after 0/3000140' >&2; exit 1"
    status, said = nodes.run()
    assert status == 1
    assert "could not find a valid record" in said
    assert "STOPPED in step 0: checkpoint bg_1 is lost" in said
    asked = (nodes.root / "waldump").read_text()
    assert asked.endswith(f"-s {RESTORE_POINT} -e {MARK} 000000010000000000000003\n")


def test_a_program_that_fails_by_itself_does_not_make_a_checkpoint_lost(nodes: Nodes) -> None:
    nodes.waldump = "echo 'pg_waldump: error while loading shared libraries' >&2; exit 127"
    status, said = nodes.run()
    assert status == 1
    assert "shared libraries" in said
    assert "STOPPED in step 0: it is not proven" in said


def test_the_commit_of_another_transaction_is_none_of_the_mark(nodes: Nodes) -> None:
    nodes.waldump = f"echo '{COMMIT}' | sed 's/tx: 747/tx: 7477/; p; s/7477/747/; s/COMMIT/COMMIT_PREPARED/'"
    status, said = nodes.run()
    assert status == 1
    assert "does not hold the commit of transaction" in said


def test_a_patroni_that_does_not_stop_stops_the_runbook(nodes: Nodes) -> None:
    nodes.places[HELD] = replace(nodes.places[HELD], stop="echo no such unit >&2; exit 5")
    status, said = nodes.run()
    assert status == 1
    assert "no such unit" in said
    assert "STOPPED in step 1: Patroni still runs on n2" in said
    assert nodes.running() == set(NAMES)


def test_a_patroni_that_comes_back_is_seen_before_the_recovery(nodes: Nodes) -> None:
    # stopping the last one starts the first again, as a service manager or a person may
    nodes.places[LEADER] = replace(
        nodes.places[LEADER], stop=f"{nodes.places[LEADER].stop}; touch {nodes.root}/n3/patroni-runs"
    )
    status, said = nodes.run()
    assert status == 1
    assert "STOPPED in step 3: n3 is not down" in said
    assert not (nodes.root / HELD / "data" / "pg_wal" / "00000002.history").exists()


@pytest.mark.parametrize("command", ["no-such-command-anywhere", "echo 'sudo: a password is required' >&2; exit 1"])
def test_a_status_command_that_cannot_be_run_says_nothing_about_patroni(nodes: Nodes, command: str) -> None:
    nodes.places["n3"] = replace(nodes.places["n3"], status=command)
    status, said = nodes.run()
    assert status == 1
    assert "STOPPED in step 0: on n3 it is not known whether Patroni runs" in said


def test_a_journal_of_another_checkpoint_stops_it(nodes: Nodes) -> None:
    (nodes.root / HELD / "patroni.yml.bluegreen-journal").write_text('{\n "id": "bg_2"\n}\n')
    status, said = nodes.run()
    assert status == 1
    assert "STOPPED in step 0: n2 holds no checkpoint bg_1" in said


def test_a_lock_of_a_run_of_airflow_stops_it_unless_it_is_broken(nodes: Nodes) -> None:
    lock = nodes.root / "n3" / "patroni.yml.bluegreen-lock"
    lock.write_text('{"operation": "release", "dag_id": "bluegreen_resume", "run_id": "one"}\n')
    status, said = nodes.run()
    assert status == 1
    assert "n3 is locked: " in said
    assert "STOPPED in step 0: somebody else works on the cluster" in said
    assert nodes.running() == set(NAMES)
    status, said = nodes.run(BREAK_LOCK="yes")
    assert status == 0, said


def test_it_locks_the_cluster_as_the_dags_do(nodes: Nodes) -> None:
    nodes.places[HELD] = replace(nodes.places[HELD], stop="exit 5")
    status, _ = nodes.run()
    assert status == 1
    for name in NAMES:
        owner = parse_owner((nodes.root / name / "patroni.yml.bluegreen-lock").read_text(), where=name)
        assert (owner.operation, owner.run_id) == ("rollback", "runbook_bg_1")
        assert owner.since


def test_a_full_disk_stops_it_before_the_cluster(nodes: Nodes) -> None:
    nodes.program(nodes.root / "path" / "df", "echo; echo /dev/sda1 1000000 999000 1000 100% /")
    status, said = nodes.run()
    assert status == 1
    assert "1000 kB free" in said
    assert nodes.running() == set(NAMES)


def test_maintenance_mode_stops_it_before_the_cluster(nodes: Nodes) -> None:
    (nodes.root / HELD / "data" / "patroni.dynamic.json").write_text('{"ttl": 30, "pause": true}')
    status, said = nodes.run()
    assert status == 1
    assert "patronictl resume first" in said
    assert "STOPPED in step 0: it is not proven" in said
    assert nodes.running() == set(NAMES)


def test_what_another_node_says_never_runs_on_the_held_one(nodes: Nodes) -> None:
    wal = nodes.root / "n3" / "data" / "pg_wal"
    hostile = f"1\t0/1\treason\nEND\nSTEP\ntouch {nodes.root}/executed\n$(touch {nodes.root}/executed)'\n"
    (wal / "00000009.history").write_text(hostile)
    (wal / "$(touch executed).history").write_text("")
    (wal / "00000008.history'; touch executed; '").write_text("")
    status, said = nodes.run()
    assert status == 0, said
    assert (nodes.root / HELD / "data" / "pg_wal" / "00000009.history").read_text() == hostile


def test_what_is_no_history_is_refused(nodes: Nodes) -> None:
    nodes.program(nodes.root / "path" / "base64", "/usr/bin/base64 \"$@\" | sed 's/^MQ.*/x; touch executed/'")
    (nodes.root / "n3" / "data" / "pg_wal" / "00000009.history").write_text("1\t0/1\treason\n")
    status, said = nodes.run()
    assert status == 1
    assert "STOPPED in step 2: n3 answered something else than histories" in said


def test_a_host_that_is_declared_down_is_left_out(nodes: Nodes) -> None:
    nodes.places["n3"] = replace(nodes.places["n3"], os_user="nobody-here", status="exit 9")
    status, said = nodes.run(HOSTS_DOWN="n3")
    assert status == 1
    assert "STOPPED in step 0: n3 is in HOSTS_DOWN, and patronictl list shows it" in said
    assert nodes.running() == set(NAMES)
    (nodes.root / "n3" / "patroni-runs").unlink()
    status, said = nodes.run(HOSTS_DOWN="n3")
    assert status == 0, said
    assert "Never start Patroni on n3" in said
    assert (nodes.root / "n3" / "patroni.yml.bluegreen-journal").exists()


def test_a_host_that_is_declared_down_and_answers_is_not_left_out(nodes: Nodes) -> None:
    (nodes.root / "n3" / "patroni-runs").unlink()
    (nodes.root / "lives").touch()
    status, said = nodes.run(HOSTS_DOWN="n3")
    assert status == 1
    assert "STOPPED in step 0: n3 is in HOSTS_DOWN, and it is not certain that it is down" in said
    assert "pg_isready on n2 ended with 1 for n3 (127.0.0.1:5432)" in said
    assert nodes.running() == {"n1", "n2"}


def test_who_has_joined_since_is_not_left_running(nodes: Nodes) -> None:
    text = nodes.text()
    (nodes.root / "members").write_text("n1 n2 n3 n4 n5")
    for name in ("n4", "n5"):
        (nodes.root / name).mkdir()
        (nodes.root / name / "patroni-runs").touch()
    status, said = nodes.run(text)
    assert status == 1
    assert "STOPPED in step 0: n4 n5 joined the cluster after checkpoint bg_1" in said and "Nothing was changed" in said
    assert nodes.running() == set(NAMES)


def test_a_database_that_the_rewind_left_without_its_version_file_gets_it(nodes: Nodes) -> None:
    whole, table = (
        ["base/1", "base/16407", "pg_tblspc/16400/PG_13_202007201/16408"],
        "pg_tblspc/16400/PG_13_202007201/1",
    )
    for name in NAMES:
        data = nodes.root / name / "data"
        (data / "PG_VERSION").write_text("13\n")
        for folder in (*whole, table, "base/pgsql_tmp"):
            (data / folder).mkdir(parents=True)
            if folder in whole and (name != LEADER or folder == "base/1"):
                (data / folder / "PG_VERSION").write_text("13\n")
    status, said = nodes.run()
    assert status == 0, said
    assert re.findall("n[123]: (.*) was missing after pg_rewind", said) == [f"{one}/PG_VERSION" for one in whole[1:]]
    for name in NAMES:
        data = nodes.root / name / "data"
        found = {str(path.parent.relative_to(data)) for path in data.glob("*/**/PG_VERSION")}
        assert found == set(whole)


def test_without_patronictl_nothing_is_stopped(nodes: Nodes) -> None:
    text = nodes.text().replace(f"{nodes.root}/{HELD}/bin/patronictl", "/no/patronictl")
    status, said = nodes.run(text)
    assert status == 1
    assert "STOPPED in step 0: patronictl list fails on n2" in said
    assert nodes.running() == set(NAMES)


@pytest.mark.parametrize(("leader", "order"), [(LEADER, "n2 n3 n1"), ("n3", "n2 n1 n3")])
def test_who_leads_now_is_stopped_last_and_put_back_first(nodes: Nodes, leader: str, order: str) -> None:
    (nodes.root / "leader").write_text(leader)
    nodes.places = {
        name: replace(place, stop=f"echo {name} >> {nodes.root}/stopped; {place.stop}")
        for name, place in nodes.places.items()
    }
    nodes.program(nodes.root / "path" / "base64", "/usr/bin/base64 \"$@\" | sed 's/^MQ.*/no history/'")
    (nodes.root / "n3" / "data" / "pg_wal" / "00000009.history").write_text("1\t0/1\treason\n")
    status, said = nodes.run()
    assert status == 1 and "STOPPED in step 2" in said, said
    assert (nodes.root / "stopped").read_text().split() == order.split()
    assert re.findall(r"(?m)^  on (n\d):", said) == order.split()[::-1]


OWNERS_TAG = "tags:\n  nofailover: true  # of the owner\n  clonefrom: true\n"


@pytest.mark.parametrize(
    "text",
    [
        OWNERS_TAG,
        "tags: {nofailover: true, clonefrom: true}\n",
        "tags: {nofailover: yes}\n",
        "tags: {failover_priority: 0, clonefrom: true}\n",
    ],
)
def test_a_standby_that_its_owner_keeps_out_of_elections_leads_until_the_others_are_back(
    nodes: Nodes, text: str
) -> None:
    path = nodes.root / HELD / "patroni.yml"
    (path.with_name(f"{path.name}.bluegreen-original")).write_text(text)
    nodes.places[HELD] = replace(nodes.places[HELD], start=f"cp {path} {path}.led; {nodes.places[HELD].start}")
    status, said = nodes.run()
    assert status == 0, said
    assert path.with_name(f"{path.name}.led").read_text() == re.sub(
        "nofailover: (true|yes)|failover_priority: 0", "nofailover: false", text, count=1
    )
    assert path.read_text() == text
    assert "keeps it out of elections" in said and "reload" in (nodes.root / "reloaded").read_text()


def test_an_owners_tag_whose_reload_failed_is_reloaded_by_the_next_run(nodes: Nodes) -> None:
    path = nodes.root / HELD / "patroni.yml"
    (path.with_name(f"{path.name}.bluegreen-original")).write_text(OWNERS_TAG)
    (nodes.root / "reload-fails").touch()
    text = nodes.text()
    status, said = nodes.run(text)
    assert status == 1 and "STOPPED in step 7: the tag nofailover did not come back on n2" in said, said
    (nodes.root / "reload-fails").unlink()
    status, said = nodes.run(text)
    assert status == 0, said
    assert path.read_text() == OWNERS_TAG and (nodes.root / "reloaded").exists()


def test_what_was_edited_during_the_hold_is_kept(nodes: Nodes) -> None:
    status, said = nodes.run()
    assert status == 0, said
    held = nodes.root / HELD
    assert (held / "patroni.yml.during-the-hold").read_text() == "held: yes\n"
    assert "was edited during the hold" in said


def test_what_was_edited_during_the_hold_is_kept_when_the_hold_was_taken_out_before(nodes: Nodes) -> None:
    held = nodes.root / HELD
    (held / "patroni.yml").write_text("held: no\n")
    (held / "patroni.yml.during-the-hold").write_text("kept by the pass before\n")
    status, said = nodes.run()
    assert status == 0, said
    assert (held / "patroni.yml.during-the-hold").read_text() == "kept by the pass before\n"


def test_files_that_the_server_did_not_have_are_gone_again(nodes: Nodes) -> None:
    data = nodes.root / HELD / "data"
    for name in ("postgresql.auto.conf", "pg_ident.conf"):
        (data / name).unlink()
    status, said = nodes.run()
    assert status == 0, said
    assert not (data / "postgresql.auto.conf").exists() and not (data / "pg_ident.conf").exists()
    assert (data / "pg_hba.conf").read_text() == "local all all scram-sha-256\n"


def test_another_clusters_node_is_not_stopped(nodes: Nodes) -> None:
    (nodes.root / "n3" / "data" / "identifier").write_text("42\n")
    status, said = nodes.run()
    assert status == 1
    assert "STOPPED in step 0: it is not proven that n3 is a member of this cluster" in said
    assert "has the system identifier '42', expected 7301" in said
    assert nodes.running() == set(NAMES)


def test_who_led_last_is_known_to_a_second_run_too(nodes: Nodes) -> None:
    nodes.psql = f'test -e "$data/postmaster.pid" || exit 2\n{nodes.psql}'
    (nodes.root / "leader").write_text("n3")
    (nodes.root / "crashes").touch()
    text, said = nodes.text(), ["", ""]
    for number in range(2):
        (nodes.root / "n1" / "data" / "state").write_text("shut down in recovery\n")
        (nodes.root / "n3" / "data" / "state").write_text("shut down\n")
        (nodes.root / "crashes").touch()
        status, said[number] = nodes.run(text)
        assert status == 1 and "STOPPED in step 3" in said[number], said[number]
        back = re.findall(r"^  on (n\d):$", said[number], flags=re.MULTILINE)
        assert back == ["n3", "n1", "n2"], f"run {number}: {said[number]}"
    assert "patronictl list calls it Leader" in said[1]


@pytest.mark.parametrize(("num", "told"), [(110010, True), (110011, False), (150018, False)])
def test_members_are_cloned_afterwards_where_an_old_pg_rewind_overlooks_pages(
    nodes: Nodes, num: int, told: bool
) -> None:
    text = runbook(checkpoint(server_version_num=num), nodes.places, superuser="postgres")
    assert ("rewind_overlooks='yes'" in text) == told
    status, said = nodes.run(nodes.text().replace("rewind_overlooks=''", f"rewind_overlooks='{'yes' if told else ''}'"))
    assert status == 0, said
    assert ("clone each of the\nothers afresh" in said) == told


def test_there_is_none_without_a_mark(nodes: Nodes) -> None:
    with pytest.raises(RefusedError, match="has no mark"):
        runbook(checkpoint(xid=None), nodes.places, superuser="postgres")


@pytest.mark.parametrize("num", [90624, 110022, 120022, 150018, 180000])
def test_it_is_shell_on_every_version(nodes: Nodes, num: int) -> None:
    text = runbook(checkpoint(server_version_num=num), nodes.places, superuser="postgres")
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert ('cat > "$data/recovery.conf"' in text) is (num < 120000)


HOSTILE = st.sampled_from(TRAPS) | st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20)
PLACES = st.builds(Place, *[HOSTILE] * 9)

# Instead of a node: what arrives must be shell; of it only the assignments run, and what they made is kept.
LISTENER = r"""#!/bin/sh
root=$(dirname "$0")
cat > "$root/script"
# the registry's own command, which is meant to run
if [ "${4:-}" = -s ]; then echo bluegreen-status=0; exit 0; fi
sh -n "$root/script" || { touch "$root/broken"; exit 1; }
if grep -q '^verb=' "$root/script"; then exit 0; fi
call=$(($(cat "$root/calls") + 1)); echo $call > "$root/calls"
{ sed '1d; /^set -eu$/,$d' "$root/script"
  cat <<'END'
printf "%s\0" "$cluster" "$scope" "$held" "$superuser" "$hba_file" "$member" "$host" "$config" "$data" \
  "$bin" "$start" "$stop" "$status" "$patronictl"
END
} > "$root/values.sh"
printf '%s\0' "$2" >> "$root/hosts"
PATH="$root/path:$PATH" sh -c "$3" </dev/null >> "$root/users"
sh "$root/values.sh" > "$root/values$call"
"""


# not made smaller: each example takes some hundred processes
@settings(max_examples=40, deadline=None, phases=[Step.explicit, Step.reuse, Step.generate])
@given(
    names=st.lists(HOSTILE, min_size=2, max_size=4, unique=True),
    places=st.lists(PLACES, min_size=4, max_size=4),
    words=st.lists(HOSTILE, min_size=5, max_size=5),
)
def test_no_value_is_ever_run(names: list[str], places: list[Place], words: list[str]) -> None:
    cluster, scope, label, superuser, hba_file = words
    held, leader = names[0], names[-1]
    address = MemberAddress(host="h", port=1, api_url="http://h", ssh_host="h")
    by_name = dict(zip(names, places, strict=False))
    used = [*words, *names, *(value for place in by_name.values() for value in vars(place).values())]
    try:
        record = checkpoint(
            cluster=cluster,
            scope=scope,
            label=label,
            held=held,
            leader=leader,
            members=dict.fromkeys(names, address),
            server_files={"hba_file": hba_file},
        )
    except ValueError:
        # a journal cannot hold such a text at all
        assert any(not word.isprintable() for word in used)
        return
    if any(not word.isprintable() for word in used):
        with pytest.raises(RefusedError):
            runbook(record, by_name, superuser=superuser)
        return
    text = runbook(record, by_name, superuser=superuser)
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Nodes.program(root / "ssh", LISTENER)
        Nodes.program(root / "path" / "sudo", r"""printf '%s\0' "$3" """)
        (root / "calls").write_text("0")
        (root / "rollback.sh").write_text(text)
        done = subprocess.run(
            ["bash", "rollback.sh"],
            env={"PATH": os.environ["PATH"], "SSH": f"{shlex.quote(folder)}/ssh", "CONFIRM": cluster},
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "STOPPED in step 0: " in done.stderr, done.stderr
        assert {path.name for path in root.iterdir()} & {"executed", "broken"} == set()
        ordered = sorted(names)
        for file, wanted in (("hosts", "ssh_host"), ("users", "os_user")):
            found = (root / file).read_text().split("\0")
            assert found[: len(names)] == [getattr(by_name[name], wanted) for name in ordered]
        for number, name in enumerate(ordered, start=1):
            place = by_name[name]
            found = (root / f"values{number}").read_text().split("\0")[:-1]
            assert found == [
                *(cluster, scope, held, superuser, hba_file, name),
                *(place.ssh_host, place.config, place.data_dir, place.bin_dir),
                *(place.start, place.stop, place.status, place.patronictl),
            ]
