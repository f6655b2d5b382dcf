"""A node over SSH: what was done, what failed, and what nobody knows."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from ssh_server import OTHER_KEY, Behaviour, Session, SshServer, connection, host_key, node

from bluegreen import shell
from bluegreen.clusters import NodeCommands
from bluegreen.exceptions import FailedForNowError, OutcomeUnknownError, RefusedError, UnreachableError
from bluegreen.hooks import node as node_module
from bluegreen.hooks.node import DataDirectory, NodeHook, Result

Answers = Callable[[Behaviour], SshServer]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """Start a server of a behaviour, to which the connection ``orders_ssh`` leads."""
    servers: list[SshServer] = []

    def start(behaviour: Behaviour) -> SshServer:
        servers.append(SshServer(behaviour))
        monkeypatch.setenv("AIRFLOW_CONN_ORDERS_SSH", connection(servers[-1].port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(answers: Answers) -> SshServer:
    """One that really runs what it is sent."""
    from ssh_server import really_run

    return answers(really_run)


@pytest.fixture
def ssh(server: SshServer) -> Iterator[NodeHook]:
    with node() as hook:
        yield hook


# Done


def test_a_script_that_ends_is_done_with_its_output(ssh: NodeHook) -> None:
    result = ssh.run("echo out; echo err >&2; exit 0\n")
    assert (result.status, result.output, result.error) == (0, "out\n", "err\n")


def test_only_the_shell_is_in_the_command_line_and_the_script_on_its_input(server: SshServer, ssh: NodeHook) -> None:
    assert ssh.run("echo hunter2\n").output == "hunter2\n"
    assert server.commands == ["/bin/sh -s"]


def test_as_the_owner_a_script_runs_through_sudo_and_as_oneself_without(answers: Answers) -> None:
    def record(session: Session) -> None:
        session.script()
        session.channel.send_exit_status(0)
        session.channel.shutdown_write()

    server = answers(record)
    with node(os_user="postgres") as hook:
        hook.run("x")
        hook.run("x", as_owner=False)
    assert server.commands == ["sudo -n -u postgres /bin/sh -s", "/bin/sh -s"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80", b"\xc3\x28", "é\r\n".encode(), b"\0" * 1000])
def test_what_is_not_utf_8_arrives_byte_for_byte(ssh: NodeHook, content: bytes) -> None:
    escaped = "".join(f"\\{byte:03o}" for byte in content)
    assert ssh.run(f"printf '{escaped}'\n").output.encode("utf-8", "surrogateescape") == content
    script = shell.script('printf %s "$value" | section value\n', value="\udcff\udc80")
    assert ssh.run(script).sections() == {"value": "\udcff\udc80"}


def test_errors_that_are_not_utf_8_are_shown_as_well_as_they_can_be(ssh: NodeHook) -> None:
    assert ssh.run("printf 'a\\377b' >&2\n").error == "a\ufffdb"


def test_a_large_script_and_a_large_output_arrive_whole(ssh: NodeHook) -> None:
    content = "x" * 3_000_000
    assert ssh.run(f"cat <<'END'\n{content}\nEND\n").output == content + "\n"


def test_output_that_follows_the_exit_status_is_waited_for(answers: Answers) -> None:
    def late(session: Session) -> None:
        session.script()
        session.channel.sendall(b"first ")
        session.channel.send_exit_status(0)
        time.sleep(0.3)
        session.channel.sendall(b"x" * 100_000)
        time.sleep(0.3)
        session.channel.sendall(b" last")
        session.channel.shutdown_write()

    answers(late)
    with node() as hook:
        assert hook.run("x").output == "first " + "x" * 100_000 + " last"


def test_the_connection_is_used_again(server: SshServer, ssh: NodeHook) -> None:
    for _ in range(3):
        ssh.run("true\n")
    assert server.connections == 1 and len(server.commands) == 3


def test_a_service_that_leaves_processes_behind_is_over_when_it_is_quiet(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays_open(session: Session) -> None:
        session.script()
        session.channel.sendall(b"started")
        session.channel.send_exit_status(0)
        time.sleep(10)

    monkeypatch.setattr(node_module, "QUIET_SECONDS", 0.3)
    answers(stays_open)
    with node() as hook:
        started = time.monotonic()
        assert hook.service("start") == Result(0, "started", "")
        assert time.monotonic() - started < 5
        # Of a script of ours all output counts.
        with pytest.raises(OutcomeUnknownError):
            hook.run("x", timeout_seconds=0.8)


# Failed


@pytest.mark.parametrize("status", [1, 41, 126, 127, 255])
def test_a_script_that_fails_has_its_status(ssh: NodeHook, status: int) -> None:
    assert ssh.run(f"exit {status}\n").status == status


def test_a_failure_says_where_what_and_why(ssh: NodeHook) -> None:
    with pytest.raises(FailedForNowError) as caught:
        ssh.done("echo out; printf 'no space\\n  left' >&2; exit 3\n", "writing the journal")
    assert str(caught.value) == ("n1 (127.0.0.1): writing the journal ended with status 3; it said: no space left")


def test_a_failure_without_words_is_told_too(ssh: NodeHook) -> None:
    with pytest.raises(FailedForNowError, match="status 3; it said: nothing"):
        ssh.done("exit 3\n", "x")


def test_a_failure_with_many_words_is_told_by_its_end(ssh: NodeHook) -> None:
    with pytest.raises(FailedForNowError) as caught:
        ssh.done("i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1\n", "x")
    assert str(caught.value).endswith("line 2999") and len(str(caught.value)) < 800


def test_what_sudo_refuses_is_refused_with_the_way_out(ssh: NodeHook) -> None:
    with pytest.raises(RefusedError, match=r"needs sudo.*a password is required.*sudoers\.example"):
        ssh.done("echo 'sudo: a password is required' >&2; exit 1\n", "stopping")


# Unknown


def _partial(session: Session) -> None:
    session.script()
    session.channel.sendall(b"part of it")


def _lost(session: Session) -> None:
    _partial(session)
    session.lose()


def _lost_after_the_status(session: Session) -> None:
    _partial(session)
    session.channel.send_exit_status(0)
    time.sleep(0.2)
    session.lose()


def _ends_without_status(session: Session) -> None:
    _partial(session)
    session.channel.shutdown_write()


def _closes_after_the_status_without_the_end_of_its_output(session: Session) -> None:
    _partial(session)
    session.channel.send_exit_status(0)
    session.channel.transport._send_user_message(_close_message(session.channel))
    time.sleep(1)


def _close_message(channel: paramiko.Channel) -> paramiko.Message:
    message = paramiko.Message()
    message.add_byte(paramiko.common.cMSG_CHANNEL_CLOSE)
    message.add_int(channel.remote_chanid)
    return message


@pytest.mark.parametrize(
    "behaviour",
    [
        _lost,
        _lost_after_the_status,
        _ends_without_status,
        _closes_after_the_status_without_the_end_of_its_output,
        Session.lose,
    ],
)
def test_a_command_whose_end_was_not_seen_is_unknown_and_never_done(answers: Answers, behaviour: Behaviour) -> None:
    answers(behaviour)
    started = time.monotonic()
    with node() as hook, pytest.raises(OutcomeUnknownError, match=r"n1 \(127\.0\.0\.1\)"):
        hook.run("x", timeout_seconds=10)
    assert time.monotonic() - started < 8


def test_a_command_that_takes_too_long_is_unknown(ssh: NodeHook) -> None:
    started = time.monotonic()
    with pytest.raises(OutcomeUnknownError, match=r"did not end within 0\.5 s"):
        ssh.run("sleep 3\n", timeout_seconds=0.5)
    assert time.monotonic() - started < 2.5


def test_a_command_that_goes_on_printing_ends_at_its_time_all_the_same(answers: Answers) -> None:
    def chatters(session: Session) -> None:
        session.script()
        while True:
            session.channel.sendall(b".")
            time.sleep(0.01)

    answers(chatters)
    with node() as hook, pytest.raises(OutcomeUnknownError, match="did not end within"):
        hook.run("x", timeout_seconds=0.5)


def test_a_command_that_prints_without_end_is_unknown(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    def floods(session: Session) -> None:
        while True:
            session.channel.sendall(b"x" * 65536)

    monkeypatch.setattr(node_module, "OUTPUT_LIMIT_BYTES", 1_000_000)
    answers(floods)
    with node() as hook, pytest.raises(OutcomeUnknownError, match="printed more than 1000000 bytes"):
        hook.run("x", timeout_seconds=20)


def test_a_script_that_nobody_reads_ends_at_its_time(answers: Answers) -> None:
    answers(lambda session: time.sleep(10))
    with node() as hook, pytest.raises(OutcomeUnknownError, match="did not end within"):
        hook.run("x" * 8_000_000, timeout_seconds=1)


def test_after_a_lost_connection_the_next_command_finds_a_new_one(answers: Answers) -> None:
    server = answers(_lost)
    with node() as hook:
        with pytest.raises(OutcomeUnknownError):
            hook.run("x")
        from ssh_server import really_run

        server.behaviour = really_run
        assert hook.run("echo back\n").output == "back\n"


# Not sent


def test_a_node_that_does_not_answer_is_unreachable(server: SshServer) -> None:
    server.close()
    with node() as hook, pytest.raises(UnreachableError, match=r"n1 \(127\.0\.0\.1\): SSH does not answer on port"):
        hook.run("x")


def test_a_server_that_opens_no_session_is_unreachable(server: SshServer, ssh: NodeHook) -> None:
    server.refuse_sessions = True
    with pytest.raises(UnreachableError, match="opened no session"):
        ssh.run("x")


def test_a_server_that_says_nothing_is_unreachable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(node_module, "CONNECT_TIMEOUT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AIRFLOW_CONN_ORDERS_SSH", connection(listener.getsockname()[1]))
        started = time.monotonic()
        with node() as hook, pytest.raises(UnreachableError):
            hook.run("x")
        assert time.monotonic() - started < 6


# Refused


def test_another_host_key_is_refused_and_nothing_is_sent(server: SshServer) -> None:
    with node(pinned=host_key(OTHER_KEY)) as hook, pytest.raises(RefusedError, match="host key is not the expected"):
        hook.run("x")
    assert server.commands == []


def test_an_unknown_host_key_is_refused_and_nothing_is_sent(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with node(pinned="") as hook, pytest.raises(RefusedError, match="host key is not known"):
        hook.run("x")
    assert server.commands == []


@pytest.mark.parametrize("extra", [{"no_host_key_check": "true"}, {"allow_host_key_change": "true"}])
def test_a_connection_that_checks_no_host_key_is_refused(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ORDERS_SSH", connection(server.port, extra=extra))
    with node(pinned="") as hook, pytest.raises(RefusedError, match="host key checking off"):
        hook.run("x")
    assert server.connections == 0


def test_a_node_that_is_known_by_its_address_only_is_told_by_its_host_key(server: SshServer) -> None:
    keys = {"n0": host_key(OTHER_KEY), "n1": host_key(), "n2": host_key(OTHER_KEY)}
    with node(keys=keys, member="127.0.0.1") as hook:
        assert hook.run("echo here").output == "here\n"
        hook.becomes("n1")
        assert hook.member == "n1"


def test_a_host_key_that_is_nobodys_is_refused_though_only_the_address_is_known(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        node(keys={"n1": host_key(OTHER_KEY)}, member="127.0.0.1") as hook,
        pytest.raises(RefusedError, match="host key is not known"),
    ):
        hook.run("x")
    assert server.commands == []


def test_another_members_host_key_is_refused_by_name(server: SshServer) -> None:
    with node(keys={"n1": host_key(OTHER_KEY), "n2": host_key()}, member="127.0.0.1") as hook:
        hook.run("echo here")
        with pytest.raises(RefusedError, match=r"is that of n2 in ssh_host_keys, but .* n1's"):
            hook.becomes("n1")


def test_another_members_pinned_key_is_not_enough_where_the_member_is_known(server: SshServer) -> None:
    with (
        node(keys={"n1": host_key(OTHER_KEY), "n2": host_key()}) as hook,
        pytest.raises(RefusedError, match="host key is not the expected"),
    ):
        hook.run("x")
    assert server.commands == []


def test_a_wrong_password_is_refused_and_not_told(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ORDERS_SSH", connection(server.port, password="hunter3"))
    with node() as hook, pytest.raises(RefusedError, match="SSH refused user 'ada'") as caught:
        hook.run("x")
    assert "hunter" not in str(caught.value)


def test_a_missing_connection_is_refused_by_name(airflow_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_ORDERS_SSH", raising=False)
    with pytest.raises(RefusedError, match="'orders_ssh' cannot be used"):
        node().prepare()


def test_a_pinned_key_of_an_unknown_type_is_refused(server: SshServer) -> None:
    with pytest.raises(RefusedError, match="unknown key type 'ssh-new'"):
        node(pinned="ssh-new AAAA").prepare()


# Sections


def test_a_line_that_is_no_section_is_never_left_out() -> None:
    good = "journal\t" + base64.b64encode(b"x").decode()
    assert Result(0, good + "\n", "").sections() == {"journal": "x"}
    for bad in ("Welcome to n1!", "journal", "journal\t!", "journal\teA", "\x00"):
        with pytest.raises(FailedForNowError, match="expected a section"):
            Result(0, f"{good}\n{bad}\n", "").sections()


# State and service

FILE = "name: n1\nscope: orders\npostgresql: {data_dir: /data/pg}\n"


def test_the_state_is_what_lies_beside_patronis_configuration(server: SshServer, tmp_path: Path) -> None:
    path = tmp_path / "patroni.yml"
    path.write_text(FILE)
    with node(config=str(path)) as hook:
        state = hook.state()
        assert (state.config.member, state.aside, state.folder, state.saved) == ("n1", False, False, False)
        assert state.journal is None and state.lock is None and state.original is None
        Path(f"{path}{shell.JOURNAL}").write_bytes(b"\xff")
        Path(f"{path}{shell.LOCK}").write_text("")
        Path(f"{path}{shell.ORIGINAL}").write_text("original")
        Path(f"{path}{shell.SAVED}").mkdir()
        state = hook.state()
        assert (state.journal, state.lock, state.original, state.saved) == ("\udcff", "", "original", True)
        path.rename(f"{path}{shell.ASIDE}")
        assert hook.state().aside and hook.state().config.member == "n1"
        path.write_text(FILE)
        with pytest.raises(RefusedError, match="both"):
            hook.state()


def test_a_node_without_a_configuration_is_refused(server: SshServer, tmp_path: Path) -> None:
    with node(config=str(tmp_path / "patroni.yml")) as hook, pytest.raises(RefusedError, match="no Patroni config"):
        hook.state()


def test_a_folder_of_configuration_is_merged(server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "a.yml").write_text(FILE)
    (tmp_path / "conf" / shell.HOLD_FILE).write_text("tags: {nosync: true}\n")
    with node(config=str(tmp_path / "conf")) as hook:
        state = hook.state()
    assert state.folder and state.config.tags == {"nosync": True} and set(state.files) == {"a.yml", shell.HOLD_FILE}


def test_what_a_node_holds_is_not_in_the_text_of_its_state(server: SshServer, tmp_path: Path) -> None:
    path = tmp_path / "patroni.yml"
    path.write_text(FILE + "password: hunter2\n")
    Path(f"{path}{shell.JOURNAL}").write_text("hunter2")
    Path(f"{path}{shell.ORIGINAL}").write_text("hunter2")
    with node(config=str(path)) as hook:
        assert "hunter2" not in repr(hook.state())


def _status(hook: NodeHook, command: str) -> NodeHook:
    hook.commands = NodeCommands(**{**hook.commands.model_dump(), "status": command})
    return hook


@pytest.mark.parametrize(("command", "running"), [("true", True), ("false", False), ("echo inactive; exit 3", False)])
def test_the_status_command_tells_whether_patroni_runs(ssh: NodeHook, command: str, running: bool) -> None:
    assert _status(ssh, command).service_status().running is running


@pytest.mark.parametrize("command", ["absent-command-x", "/etc/passwd", "echo 'sudo: not allowed' >&2; exit 1"])
def test_a_status_command_that_cannot_run_is_never_a_stopped_patroni(ssh: NodeHook, command: str) -> None:
    with pytest.raises(RefusedError, match=r"node\.status command cannot be run"):
        _status(ssh, command).service_status()


def test_start_and_stop_run_the_registrys_commands_as_the_ssh_user(server: SshServer) -> None:
    with node(os_user="postgres") as hook:
        assert hook.service("start").output == "started\n"
        assert hook.service("stop").status == 3
    assert server.commands == ["/bin/sh -s"] * 2


# A data directory

CONTROL = "Database system identifier:           7439\nDatabase cluster state:               shut down\nbroken line\n"


def test_what_pg_controldata_says_is_found_by_its_label() -> None:
    found = DataDirectory({"controldata": CONTROL})
    assert found.control("Database system identifier") == "7439"
    assert found.control("Database cluster state") == "shut down"


@pytest.mark.parametrize("raw", [{}, {"controldata": ""}, {"controldata": CONTROL}])
def test_a_line_that_pg_controldata_did_not_give_fails(raw: dict[str, str]) -> None:
    for label in ("broken line", "Latest checkpoint's REDO location", "Database system"):
        with pytest.raises(FailedForNowError, match="gave no line"):
            DataDirectory(raw).control(label)


@pytest.mark.parametrize(("latest", "minimum", "timeline"), [("3", "0", 3), ("3", "4", 4), ("5", "4", 5)])
def test_the_timeline_is_the_one_that_replay_has_come_to(latest: str, minimum: str, timeline: int) -> None:
    lines = f"Latest checkpoint's TimeLineID:       {latest}\nMin recovery ending loc's timeline:   {minimum}\n"
    assert DataDirectory({"controldata": lines}).timeline == timeline


PID_FILE = "4711\n/data\n1764200000\n5432\n/run\n127.0.0.1\n  5432001   0\n{}\n"


@pytest.mark.parametrize(
    ("processes", "pid_file", "starts"),
    [
        ("3", PID_FILE.format("starting"), True),
        ("3", PID_FILE.format("standby "), False),
        ("3", PID_FILE.format("ready   "), False),
        ("0", PID_FILE.format("starting"), False),
        ("3", "4711\n/data\n", False),
        ("3", "", False),
    ],
)
def test_a_server_that_replays_lets_nobody_in(processes: str, pid_file: str, starts: bool) -> None:
    assert DataDirectory({"processes": processes, "file:postmaster.pid": pid_file}).server_starts is starts


def test_a_timeline_that_is_none_fails_for_now() -> None:
    lines = "Latest checkpoint's TimeLineID: 3\nMin recovery ending loc's timeline: $(id)\n"
    with pytest.raises(FailedForNowError, match="expected a number"):
        assert DataDirectory({"controldata": lines}).timeline


@pytest.mark.parametrize("line", ["", "df: /data: No such file", "/dev/sda1 - - - - /data", "/dev/sda1 100 50"])
def test_a_disk_without_figures_is_not_an_empty_one(line: str) -> None:
    with pytest.raises(FailedForNowError, match="no figures"):
        DataDirectory({"data_disk": line}).disk("data")


def test_a_disks_figures_are_bytes() -> None:
    line = "/dev/sda1 1000 400 600 40% /data\n"
    assert DataDirectory({"wal_disk": line}).disk("wal") == ("/dev/sda1", 1024000, 614400)


@pytest.mark.parametrize("text", ["$(id)", "-1", "1.5", "\u0662", "9" * 5000])
def test_what_is_no_number_in_a_nodes_answer_fails_for_now(text: str) -> None:
    with pytest.raises(FailedForNowError, match="expected a number"):
        assert node_module.DataDirectory({"processes": text}).server_processes


# Rights


class Sudo:
    """What a node would be asked, and what sudo there says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
        self.asked: list[str] = []

        def run(hook: NodeHook, script: str, **options: Any) -> Result:
            self.asked.append(script)
            return Result(status, "", "sudo: a password is required\n" if status else "")

        monkeypatch.setattr(NodeHook, "run", run)


def with_commands(start: str) -> NodeHook:
    hook = node()
    hook.commands = hook.commands.model_copy(update={"start": start, "stop": "sudo -n /bin/stop pg"})
    return hook


def test_sudo_is_asked_whether_it_allows_the_service_commands_and_runs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sudo = Sudo(monkeypatch, 0)
    with_commands("sudo systemctl start patroni").require_service_rights()
    assert sudo.asked == ["sudo -n -l systemctl start patroni </dev/null\n", "sudo -n -l -n /bin/stop pg </dev/null\n"]


@pytest.mark.parametrize(
    "command", ["sudo a && sudo b", "sudo a; b", "sudo $(b)", "ctl start n1", "sudo a | b", "sudoers a"]
)
def test_a_command_that_is_not_one_plain_call_of_sudo_is_not_touched(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    sudo = Sudo(monkeypatch, 0)
    with_commands(command).require_service_rights()
    assert sudo.asked == ["sudo -n -l -n /bin/stop pg </dev/null\n"]


def test_a_service_command_that_sudo_does_not_allow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Sudo(monkeypatch, 1)
    with pytest.raises(
        RefusedError, match="does not allow the registry's start command 'sudo systemctl start patroni'"
    ):
        with_commands("sudo systemctl start patroni").require_service_rights()
