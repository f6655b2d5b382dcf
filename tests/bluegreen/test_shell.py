"""The scripts, really run by /bin/sh in temporary directories."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bluegreen.traps import TRAPS

from bluegreen import shell
from bluegreen.hooks.node import Result

NAMES = st.sampled_from(TRAPS) | st.text(
    alphabet=st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30
)
# A command substitution drops a newline at the end; the registry and the node's data_dir allow none at all.
FILE_NAMES = NAMES.map(lambda name: name + "x" if name.endswith("\n") or name in {".", ".."} else name)
CONTENTS = st.binary(max_size=300) | st.sampled_from([text.encode("utf-8", "surrogateescape") for text in TRAPS])

FEW = settings(max_examples=25)


def run(script: str, *, cwd: Path, env: dict[str, str] | None = None) -> Result:
    done = subprocess.run(
        ["/bin/sh", "-s"],
        input=script.encode("utf-8", "surrogateescape"),
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=60,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode("utf-8", "surrogateescape"), done.stderr.decode())


def ok(script: str, *, cwd: Path, env: dict[str, str] | None = None) -> Result:
    result = run(script, cwd=cwd, env=env)
    assert result.status == 0, result.error
    return result


def text_of(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


@contextmanager
def sandbox() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bluegreen-shell-") as folder:
        path = Path(folder).resolve()
        (path / "in").mkdir()
        yield path / "in"
        assert not list(path.rglob("executed")), "a value was executed"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file, link and folder below one, so that two moments can be compared."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = b"-> " + os.fsencode(path.readlink())
        else:
            found[name] = b"(folder)" if path.is_dir() else path.read_bytes()
    return found


def program(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)


RECORD = """
for argument in "$@"; do printf '%s\\0' "$argument"; done > "$RECORD.arguments"
env -0 > "$RECORD.environment"
cat > "$RECORD.input"
"""


class Recorded:
    """What a program that records itself was called with."""

    def __init__(self, folder: Path) -> None:
        self.arguments = [text_of(part) for part in (folder / "r.arguments").read_bytes().split(b"\0")[:-1]]
        self.input = (folder / "r.input").read_text()
        self.environment = dict(
            text_of(line).split("=", 1) for line in (folder / "r.environment").read_bytes().split(b"\0") if line
        )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path.resolve()


# Values and contents


@FEW
@given(st.dictionaries(st.sampled_from(["one", "two", "three"]), NAMES, min_size=1))
def test_a_value_reaches_the_script_as_it_is(values: dict[str, str]) -> None:
    with sandbox() as here:
        body = "".join(f'printf %s "${name}" | section {name}\n' for name in values)
        assert ok(shell.script(body, **values), cwd=here).sections() == values


@FEW
@given(FILE_NAMES, CONTENTS, CONTENTS)
def test_a_file_is_created_and_replaced_byte_for_byte_whatever_its_name(name: str, first: bytes, second: bytes) -> None:
    with sandbox() as here:
        path = Path(os.fsdecode(os.fsencode(str(here)) + b"/" + name.encode("utf-8", "surrogateescape")))
        for content in (first, second):
            ok(shell.replace_files({str(path): text_of(content)}), cwd=here)
            assert path.read_bytes() == content
        assert [os.fsencode(found) for found in here.iterdir()] == [os.fsencode(path)]


@FEW
@given(FILE_NAMES, CONTENTS)
def test_a_configuration_is_read_byte_for_byte_whatever_its_name(name: str, content: bytes) -> None:
    with sandbox() as here:
        path = Path(os.fsdecode(os.fsencode(str(here)) + b"/" + name.encode("utf-8", "surrogateescape")))
        path.write_bytes(content)
        Path(f"{path}{shell.JOURNAL}").write_bytes(content[::-1])
        sections = ok(shell.read_configuration(str(path)), cwd=here).sections()
        assert sections["config:"].encode("utf-8", "surrogateescape") == content
        assert sections["journal"].encode("utf-8", "surrogateescape") == content[::-1]
        assert "aside:" not in sections and "lock" not in sections


@FEW
@given(FILE_NAMES, CONTENTS)
def test_a_lock_is_taken_read_and_dropped_whatever_its_content(name: str, content: bytes) -> None:
    with sandbox() as here:
        path = os.fsdecode(os.fsencode(str(here)) + b"/" + name.encode("utf-8", "surrogateescape"))
        assert "taken" in ok(shell.take_lock(path, text_of(content)), cwd=here).sections()
        again = ok(shell.take_lock(path, "another"), cwd=here).sections()
        assert again == {"lock": text_of(content)}
        ok(shell.drop_lock(path, text_of(content) + "x"), cwd=here)
        assert Path(path + shell.LOCK).read_bytes() == content
        ok(shell.drop_lock(path, text_of(content)), cwd=here)
        assert list(here.iterdir()) == []


def test_large_content_arrives_whole(here: Path) -> None:
    content = os.urandom(2_000_000)
    ok(shell.replace_files({str(here / "f"): text_of(content)}), cwd=here)
    assert (here / "f").read_bytes() == content


# Replacing files


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o664])
def test_a_replaced_file_keeps_its_mode(here: Path, mode: int) -> None:
    path = here / "patroni.yml"
    path.write_text("old")
    path.chmod(mode)
    ok(shell.replace_files({str(path): "new"}), cwd=here)
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_replaced_file_keeps_its_owner(here: Path) -> None:
    path = here / "patroni.yml"
    path.write_text("old")
    os.chown(path, 65534, 65533)
    ok(shell.replace_files({str(path): "new"}), cwd=here)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


def test_a_new_file_is_closed_to_others(here: Path) -> None:
    ok(shell.replace_files({str(here / "journal"): "x"}), cwd=here)
    assert stat.S_IMODE((here / "journal").stat().st_mode) == 0o600


def test_a_link_stays_and_its_target_is_replaced(here: Path) -> None:
    (here / "real").mkdir()
    (here / "real" / "patroni.yml").write_text("old")
    (here / "patroni.yml").symlink_to("real/patroni.yml")
    ok(shell.replace_files({str(here / "patroni.yml"): "new"}), cwd=here)
    assert tree(here) == {"patroni.yml": b"-> real/patroni.yml", "real": b"(folder)", "real/patroni.yml": b"new"}


def test_where_a_file_cannot_be_written_the_script_fails(here: Path) -> None:
    result = run(shell.replace_files({str(here / "no" / "folder" / "f"): "x"}), cwd=here)
    assert result.status != 0 and result.error


def test_the_first_original_is_kept_and_comes_back_byte_for_byte(here: Path) -> None:
    path = here / "patroni.yml"
    original = bytes(range(256)) + b"no newline at the end"
    path.write_bytes(original)
    path.chmod(0o640)
    for text in ("held", "held and marked"):
        ok(shell.replace_files({str(path): text}, keep_original_of=str(path)), cwd=here)
        assert path.read_text() == text
        assert Path(f"{path}{shell.ORIGINAL}").read_bytes() == original
    ok(shell.restore_original(str(path)), cwd=here)
    assert path.read_bytes() == original and stat.S_IMODE(path.stat().st_mode) == 0o640
    # kept: until the journal goes a second try needs it
    kept = Path(f"{path}{shell.ORIGINAL}")
    assert {found.name for found in here.iterdir()} == {"patroni.yml", kept.name}
    ok(shell.restore_original(str(path)), cwd=here)
    assert path.read_bytes() == original == kept.read_bytes()
    # nor does one who writes over the file in its place change what is kept
    path.write_text("held by a person")
    assert kept.read_bytes() == original
    # a hold that comes anew leaves it alone
    ok(shell.replace_files({str(path): "held again"}), cwd=here)
    assert kept.read_bytes() == original


def test_the_original_behind_a_link_comes_back_to_where_the_link_leads(here: Path) -> None:
    (here / "real.yml").write_text("original")
    (here / "patroni.yml").symlink_to("real.yml")
    path = str(here / "patroni.yml")
    ok(shell.replace_files({path: "held"}, keep_original_of=path), cwd=here)
    assert (here / "real.yml").read_text() == "held"
    ok(shell.restore_original(path), cwd=here)
    kept = f"patroni.yml{shell.ORIGINAL}"
    assert tree(here) == {"patroni.yml": b"-> real.yml", "real.yml": b"original", kept: b"original"}


def test_whether_a_server_logs_to_a_file_is_told_or_the_script_fails(here: Path) -> None:
    log, pid = here / "log", here / "postmaster.pid"
    script = shell.logs_to(str(here), str(log))
    # without the file nobody has to be asked
    assert "used" not in ok(script, cwd=here).sections()
    log.touch()
    assert run(script, cwd=here).status != 0
    for text in ("", "999999999\n"):
        pid.write_text(text)
        assert run(script, cwd=here).status != 0
    for stderr in (log.open("a"), subprocess.DEVNULL):
        with subprocess.Popen(["sleep", "30"], stderr=stderr) as server:
            pid.write_text(f"{server.pid}\n")
            assert ("used" in ok(script, cwd=here).sections()) == (stderr is not subprocess.DEVNULL)
            server.kill()


def test_removing_takes_what_is_named_and_nothing_else(here: Path) -> None:
    for name in ("a b", "a", "b", "-rf", "c"):
        (here / name).write_text("x")
    (here / "folder").mkdir()
    (here / "folder" / "f").write_text("x")
    ok(shell.remove_files(str(here / "a b"), str(here / "-rf"), str(here / "folder"), str(here / "absent")), cwd=here)
    assert sorted(path.name for path in here.iterdir()) == ["a", "b", "c"]


# Locks


def test_of_two_at_once_exactly_one_gets_the_lock_and_the_other_reads_all_of_it(here: Path) -> None:
    path = str(here / "patroni.yml")
    contents = [f'{{"run": "{number}", "more": "{"x" * 5000}"}}' for number in range(3)]
    scripts = [shell.take_lock(path, content).encode() for content in contents]
    winners = set()
    for _ in range(25):
        started = [
            subprocess.Popen(["/bin/sh", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here)
            for _ in scripts
        ]
        for process, script in zip(started, scripts, strict=True):
            assert process.stdin is not None
            process.stdin.write(script)
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        answers = [Result(0, process.communicate(timeout=30)[0].decode(), "").sections() for process in started]
        taken = [number for number, answer in enumerate(answers) if "taken" in answer]
        assert len(taken) == 1
        assert [answer["lock"] for answer in answers if "taken" not in answer] == [contents[taken[0]]] * 2
        assert Path(path + shell.LOCK).read_text() == contents[taken[0]]
        winners.add(taken[0])
        ok(shell.drop_lock(path, contents[taken[0]]), cwd=here)
        assert list(here.iterdir()) == []


def test_dropping_a_lock_that_is_not_there_is_no_failure(here: Path) -> None:
    ok(shell.drop_lock(str(here / "patroni.yml"), "x"), cwd=here)


def test_a_lock_that_cannot_be_written_is_not_taken(here: Path) -> None:
    result = run(shell.take_lock(str(here / "absent" / "patroni.yml"), "x"), cwd=here)
    assert result.status != 0 and "taken" not in result.output


# Moving the configuration aside


@pytest.mark.parametrize("folder", [False, True])
def test_setting_aside_and_bringing_back_can_be_repeated(here: Path, folder: bool) -> None:
    path = here / "patroni"
    if folder:
        path.mkdir()
        (path / "a.yml").write_bytes(b"\xff content")
    else:
        path.write_bytes(b"\xff content")
    before = tree(here)
    for _ in range(2):
        ok(shell.set_aside(str(path)), cwd=here)
        assert not path.exists() and Path(f"{path}{shell.ASIDE}").exists()
        found = ok(shell.read_configuration(str(path)), cwd=here).sections()
        assert found["aside:a.yml" if folder else "aside:"].encode("utf-8", "surrogateescape") == b"\xff content"
        assert not [name for name in found if name.startswith("config:")]
    for _ in range(2):
        ok(shell.bring_back(str(path)), cwd=here)
        assert tree(here) == before


def test_two_configurations_are_never_overwritten(here: Path) -> None:
    path = here / "patroni.yml"
    path.write_text("new")
    Path(f"{path}{shell.ASIDE}").write_text("old")
    before = tree(here)
    for script in (shell.set_aside(str(path)), shell.bring_back(str(path))):
        assert run(script, cwd=here).status != 0
        assert tree(here) == before
    assert "both" in run(shell.set_aside(str(path)), cwd=here).error


def test_setting_aside_nothing_fails(here: Path) -> None:
    assert run(shell.set_aside(str(here / "patroni.yml")), cwd=here).status != 0
    assert run(shell.bring_back(str(here / "patroni.yml")), cwd=here).status != 0


def test_a_held_configuration_comes_back_from_aside_as_its_original(here: Path) -> None:
    path = here / "patroni.yml"
    path.write_bytes(b"original \xfe")
    ok(shell.replace_files({str(path): "held"}, keep_original_of=str(path)), cwd=here)
    ok(shell.set_aside(str(path)), cwd=here)
    for _ in range(2):
        ok(shell.release_aside(str(path), None), cwd=here)
        assert path.read_bytes() == b"original \xfe" and not Path(f"{path}{shell.ASIDE}").exists()


def test_what_a_link_leads_to_comes_back_from_aside_as_its_original(here: Path) -> None:
    path, real = here / "patroni.yml", here / "real.yml"
    real.write_text("original")
    path.symlink_to("real.yml")
    ok(shell.replace_files({str(path): "held"}, keep_original_of=str(path)), cwd=here)
    ok(shell.set_aside(str(path)), cwd=here)
    ok(shell.release_aside(str(path), None), cwd=here)
    assert path.is_symlink() and real.read_text() == "original"


def test_an_edited_configuration_comes_back_from_aside_with_the_text_that_is_given(here: Path) -> None:
    path = here / "patroni.yml"
    path.write_text("original")
    path.chmod(0o640)
    ok(shell.replace_files({str(path): "held, edited"}, keep_original_of=str(path)), cwd=here)
    ok(shell.set_aside(str(path)), cwd=here)
    ok(shell.release_aside(str(path), "edited $(touch executed)\n"), cwd=here)
    assert path.read_text() == "edited $(touch executed)\n" and stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_script_that_was_cut_off_does_nothing(here: Path) -> None:
    path = here / "patroni.yml"
    path.write_text("as it was")
    text = shell.replace_files({str(path): "another, of several lines\n" * 400})
    for end in range(text.index("BLUEGREEN_END"), len(text) - len("}\n"), 997):
        assert run(text[:end], cwd=here).status != 0
        assert path.read_text() == "as it was"
    ok(text, cwd=here)
    assert path.read_text() != "as it was"


def test_a_folder_comes_back_from_aside_without_the_holds_file(here: Path) -> None:
    path = here / "patroni"
    path.mkdir()
    (path / "a.yml").write_text("a")
    before = tree(here)
    ok(shell.replace_files({f"{path}/{shell.HOLD_FILE}": "held"}), cwd=here)
    ok(shell.set_aside(str(path)), cwd=here)
    ok(shell.release_aside(str(path), None), cwd=here)
    assert tree(here) == before


# Reading


def test_a_folder_of_files_is_read_by_name_without_other_files(here: Path) -> None:
    for name in ("b.yml", "a.yaml", "c.txt", ".hidden.yml"):
        (here / name).write_text(name)
    (here / "folder.yml").mkdir()
    found = ok(shell.read_configuration(str(here)), cwd=here).sections()
    assert {name: text for name, text in found.items() if name.startswith("config:")} == {
        "config:": "folder\n",
        "config:a.yaml": "a.yaml",
        "config:b.yml": "b.yml",
    }


def test_where_there_is_no_configuration_none_is_read(here: Path) -> None:
    found = ok(shell.read_configuration(str(here / "patroni.yml")), cwd=here).sections()
    assert set(found) <= {"user", "writable"}


# A data directory

CONTROL = """printf 'pg_control version number:            1300\\n'
printf 'Database system identifier:           %s\\n' "$(cat "$1/identifier")"
"""


def data_directory(here: Path, name: str = "data", identifier: str = "7439") -> Path:
    """A data directory with a tablespace and a linked pg_wal, and a pg_controldata that reads it."""
    program(here / "bin", "pg_controldata", CONTROL)
    data = here / name
    for folder in ("global", "base/5", "pg_tblspc"):
        (data / folder).mkdir(parents=True)
    for file in ("global/pg_control", "base/5/1", ".hidden", "-rf", "postgresql.conf"):
        (data / file).write_text("x")
    (data / "PG_VERSION").write_text("15\n")
    (data / "identifier").write_text(identifier)
    (here / "wal" / "archive_status").mkdir(parents=True)
    (here / "wal" / "000000010000000000000001").write_text("x")
    (here / "wal" / "archive_status" / "x.done").write_text("x")
    (here / "wal" / "00000002.history").write_text("1\t0/5\tx\n")
    (data / "pg_wal").symlink_to(here / "wal")
    for folder in ("PG_15_202209061/5", "PG_14_202107181/5", "other"):
        (here / "space" / folder).mkdir(parents=True)
        (here / "space" / folder / "f").write_text("x")
    (data / "pg_tblspc" / "16384").symlink_to(here / "space")
    return data


def empty(here: Path, data: Path, identifier: str = "7439", major: str = "15") -> Result:
    script = shell.empty_data_directory(str(data), system_identifier=identifier, bin_dir=str(here / "bin"), major=major)
    return run(script, cwd=here)


def test_emptying_takes_the_directory_its_tablespaces_and_its_wal_and_nothing_else(here: Path) -> None:
    data = data_directory(here)
    (here / "beside").mkdir()
    (here / "beside" / "f").write_text("x")
    (data / "to beside").symlink_to(here / "beside")
    for _ in range(2):
        assert empty(here, data).status == 0
        assert list(data.iterdir()) == []
        assert list((here / "wal").iterdir()) == []
        assert sorted(path.name for path in (here / "space").iterdir()) == ["PG_14_202107181", "other"]
        assert (here / "space" / "other" / "f").exists() and (here / "space" / "PG_14_202107181" / "5" / "f").exists()
        assert (here / "beside" / "f").exists() and (here / "bin" / "pg_controldata").exists()


def test_a_directory_behind_a_link_is_emptied_too(here: Path) -> None:
    data = data_directory(here, "real")
    (here / "data").symlink_to("real")
    assert empty(here, here / "data").status == 0
    assert (here / "data").is_symlink() and list(data.iterdir()) == []


@pytest.mark.parametrize("name", ["with space", "$(touch executed)", "[ab]*", "it's", "back\\slash", "-rf"])
def test_emptying_works_whatever_the_name(here: Path, name: str) -> None:
    data = data_directory(here, name)
    assert empty(here, data).status == 0
    assert list(data.iterdir()) == [] and not list(here.rglob("executed"))


@pytest.mark.parametrize("identifier", ["7440", "", "743", "7439 "])
def test_another_clusters_directory_is_left_alone(here: Path, identifier: str) -> None:
    data = data_directory(here)
    before = tree(here)
    result = empty(here, data, identifier)
    assert f"has the system identifier '7439', expected {identifier}" in result.error
    assert result.status == 43 and tree(here) == before


@pytest.mark.parametrize("body", ["exit 1\n", "echo broken\n", "kill -9 $$\n"])
@pytest.mark.parametrize("identifier", ["7439", ""])
def test_a_directory_whose_identifier_cannot_be_read_is_left_alone(here: Path, body: str, identifier: str) -> None:
    data = data_directory(here)
    program(here / "bin", "pg_controldata", body)
    before = tree(here)
    assert empty(here, data, identifier).status == 43
    assert tree(here) == before


def test_without_pg_controldata_a_directory_is_left_alone(here: Path) -> None:
    data = data_directory(here)
    (here / "bin" / "pg_controldata").unlink()
    before = tree(here)
    assert empty(here, data).status != 0
    assert tree(here) == before


def test_a_directory_that_is_not_postgresqls_is_left_alone(here: Path) -> None:
    (here / "home").mkdir()
    (here / "home" / "letter").write_text("x")
    result = empty(here, here / "home")
    assert result.status == 44 and "holds no PostgreSQL data" in result.error
    assert (here / "home" / "letter").exists()


@pytest.mark.parametrize("left", ["backup_label", "PG_VERSION", ".bluegreen-emptying"])
def test_what_an_interrupted_copy_or_emptying_left_is_emptied(here: Path, left: str) -> None:
    data = here / "data"
    (data / "base").mkdir(parents=True)
    (data / left).write_text("x")
    assert empty(here, data).status == 0
    assert list(data.iterdir()) == []


def test_an_absent_or_empty_directory_is_already_empty(here: Path) -> None:
    assert empty(here, here / "absent").status == 0 and not (here / "absent").exists()
    (here / "data").mkdir()
    assert empty(here, here / "data").status == 0 and (here / "data").is_dir()


@pytest.mark.parametrize("name", ["data", "[ab]*", "back\\slash", "with space"])
def test_a_directory_on_which_a_server_runs_is_left_alone(here: Path, name: str) -> None:
    data = data_directory(here, name)
    before = tree(here)
    with subprocess.Popen(["sleep", "60"], cwd=data) as server:
        result = empty(here, data)
        found = ok(shell.probe(str(data), str(here / "bin")), cwd=here).sections()
        server.kill()
    assert result.status == 42 and "still runs" in result.error and tree(here) == before
    assert found["processes"].strip() == "1"


def test_a_server_that_does_not_show_where_it_works_is_found_by_its_call(here: Path) -> None:
    data = data_directory(here, "data")
    (data / "postmaster.pid").write_text("1\n")
    script = shell.probe(str(data), str(here / "bin"))
    assert ok(script, cwd=here).sections()["processes"].strip() == "0", "the pid is another program's"
    with subprocess.Popen(["sh", "-c", "sleep 60; :", "postgres", "-D", str(data)], cwd="/") as server:
        (data / "postmaster.pid").write_text(f"{server.pid}\n")
        found = ok(script, cwd=here).sections()
        result = empty(here, data)
        server.kill()
    assert found["processes"].strip() == "1"
    assert result.status == 42 and "still runs" in result.error


@pytest.mark.parametrize("linked", [False, True])
def test_a_probe_says_what_is_there(here: Path, linked: bool) -> None:
    data = data_directory(here, "real" if linked else "data")
    (data / "standby.signal").write_text("")
    (data / "postgresql.auto.conf").write_bytes(b"a = '\xff'\n")
    if linked:
        (here / "data").symlink_to("real")
    found = ok(shell.probe(str(here / "data"), str(here / "bin")), cwd=here).sections()
    assert found["exists"] == "yes\n" and int(found["entries"]) == len(list(data.iterdir()))
    assert found["processes"].strip() == "0"
    assert found["file:postgresql.auto.conf"] == "a = '\udcff'\n"
    assert "standby.signal" in found and "recovery.signal" not in found
    assert "Database system identifier:           7439\n" in found["controldata"]
    assert found["history:00000002.history"] == "1\t0/5\tx\n"
    assert "000000010000000000000001" in found["wal_names"].split()
    assert found["wal_link"].strip() == str(here / "wal")
    assert found["tablespaces"].strip() == str(here / "space")
    assert found["programs"].split() == ["pg_controldata"]
    assert len(found["data_disk"].split()) >= 6 and len(found["wal_disk"].split()) >= 6


def test_a_probe_of_nothing_finds_nothing(here: Path) -> None:
    found = ok(shell.probe(str(here / "absent"), str(here / "bin")), cwd=here).sections()
    assert "exists" not in found and "controldata" not in found and "entries" not in found


# The files of the recovery


def recovery(here: Path, data: Path, *, signals: bool = True) -> str:
    return shell.prepare_recovery(
        config=str(here / "patroni.yml"),
        data_dir=str(data),
        wal_dir=str(data / "pg_wal"),
        originals={
            "pg_hba.conf": str(here / "etc hba"),
            "postgresql.auto.conf": str(data / "postgresql.auto.conf"),
            **(
                {"standby.signal": str(data / "standby.signal")}
                if signals
                else {"recovery.conf": f"{data}/recovery.conf"}
            ),
        },
        files={str(here / "etc hba"): "closed", str(data / "postgresql.auto.conf"): "target\n"},
        histories={"00000002.history": "theirs", "00000003.history": "1\t0/6\t$(touch executed)\n"},
        signals=signals,
    )


def standby(here: Path) -> Path:
    data = data_directory(here)
    (data / "standby.signal").write_bytes(b"")
    (data / "postgresql.auto.conf").write_bytes(b"mine \xff\n")
    (here / "etc hba").write_bytes(b"open \xfe")
    (here / "etc hba").chmod(0o640)
    return data


def put_back(here: Path, data: Path, signals: str) -> str:
    originals = {"pg_hba.conf": str(here / "etc hba"), "postgresql.auto.conf": str(data / "postgresql.auto.conf")}
    return shell.restore_saved(
        config=str(here / "patroni.yml"), data_dir=str(data), originals=originals, signals=signals
    )


def test_a_prepared_recovery_can_be_taken_back_byte_for_byte(here: Path) -> None:
    data = standby(here)
    before = tree(here)
    for _ in range(2):
        ok(recovery(here, data), cwd=here)
        assert (here / "etc hba").read_text() == "closed"
        assert (data / "postgresql.auto.conf").read_text() == "target\n"
        assert (data / "recovery.signal").exists() and not (data / "standby.signal").exists()
        assert (here / "wal" / "00000002.history").read_text() == "1\t0/5\tx\n", "the member's own history is kept"
        assert (here / "wal" / "00000003.history").read_text() == "1\t0/6\t$(touch executed)\n"
    for _ in range(2):
        ok(put_back(here, data, "standby"), cwd=here)
        assert stat.S_IMODE((here / "etc hba").stat().st_mode) == 0o640
    ok(shell.remove_files(f"{here}/patroni.yml{shell.SAVED}", str(here / "wal" / "00000003.history")), cwd=here)
    assert tree(here) == before


def test_after_the_promotion_the_files_come_back_and_no_signal(here: Path) -> None:
    data = standby(here)
    ok(recovery(here, data), cwd=here)
    (data / "recovery.signal").unlink()
    ok(put_back(here, data, "none"), cwd=here)
    assert (here / "etc hba").read_bytes() == b"open \xfe"
    assert (data / "postgresql.auto.conf").read_bytes() == b"mine \xff\n"
    assert not (data / "standby.signal").exists() and not (data / "recovery.signal").exists()


def test_before_12_a_recovery_conf_that_was_not_there_goes_again(here: Path) -> None:
    data = standby(here)
    ok(recovery(here, data, signals=False), cwd=here)
    assert not (data / "recovery.signal").exists() and (data / "standby.signal").exists()
    (data / "recovery.conf").write_text("ours")
    script = shell.restore_saved(
        config=str(here / "patroni.yml"),
        data_dir=str(data),
        originals={"recovery.conf": str(data / "recovery.conf")},
        signals="standby",
    )
    ok(script, cwd=here)
    assert not (data / "recovery.conf").exists()


def test_a_link_stays_a_link_and_a_file_that_is_as_it_was_is_not_written(here: Path) -> None:
    data = standby(here)
    (here / "managed").mkdir()
    (here / "etc hba").rename(here / "managed" / "hba")
    (here / "etc hba").symlink_to(here / "managed" / "hba")
    ok(recovery(here, data), cwd=here)
    assert (here / "managed" / "hba").read_text() == "closed"
    ok(put_back(here, data, "standby"), cwd=here)
    assert (here / "etc hba").is_symlink() and (here / "managed" / "hba").read_bytes() == b"open \xfe"
    written = (here / "managed" / "hba").stat().st_ino
    ok(put_back(here, data, "standby"), cwd=here)
    assert (here / "managed" / "hba").stat().st_ino == written


def test_it_is_tried_whether_a_file_can_be_replaced(here: Path) -> None:
    for name in ("hba", "link", "its user's"):
        (here / name).write_text("mine")
    (here / "link").unlink()
    (here / "link").symlink_to(here / "hba")
    before = tree(here)
    good = {"hba_file": str(here / "hba"), "ident_file": str(here / "link"), "new": str(here / "new")}
    assert ok(shell.try_replacing(good), cwd=here).sections() == {}
    bad = {
        "hba_file": "/proc/version",
        "ident_file": str(here / "gone" / "ident"),
        "mounted": "/proc",
        "its user's": str(here / "its user's"),
    }
    found = ok(shell.try_replacing(bad), cwd=here).sections()
    assert found["hba_file"] == "/proc/version: nothing can be written beside it"
    assert found["ident_file"].endswith("ident: there is no folder for it")
    assert found["mounted"] == "/proc: something is mounted on it"
    assert set(found) == {"hba_file", "ident_file", "mounted"}
    assert tree(here) == before


@pytest.mark.parametrize("program", ["base64", "chown", "sync"])
def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(here: Path, program: str) -> None:
    (here / "hba").write_text("mine")
    (here / "bin").mkdir()
    (here / "bin" / program).write_text("#!/bin/sh\nexit 7\n")
    (here / "bin" / program).chmod(0o755)
    before = tree(here)
    path = f"{here / 'bin'}:{os.environ['PATH']}"
    assert run(shell.replace_files({str(here / "hba"): "new"}), cwd=here, env={"PATH": path}).status == 7
    assert tree(here) == before


def test_nothing_is_put_back_where_nothing_was_saved(here: Path) -> None:
    data = standby(here)
    before = tree(here)
    ok(put_back(here, data, "standby"), cwd=here)
    assert tree(here) == before


# Programs


@pytest.mark.parametrize("name", ["$(touch executed)", "it's", "two words", "-rf", "a\nb"])
def test_psql_is_called_over_the_socket_with_the_statement_on_its_input(here: Path, name: str) -> None:
    program(here / "bin", "psql", RECORD)
    statement = "select '$(touch executed)', `id`, \\'x"
    ok(
        shell.psql(str(here / "bin"), name, "5433", name, statement),
        cwd=here,
        env={"RECORD": str(here / "r")},
    )
    called = Recorded(here)
    assert called.arguments == [
        *("-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"),
        *("-h", name, "-p", "5433", "-U", name, "-d", "postgres"),
    ]
    assert called.input == statement + "\n"
    assert called.environment["PGCONNECT_TIMEOUT"] == "5"
    assert not list(here.rglob("executed"))


def test_pg_waldump_is_asked_for_the_transactions_between_two_positions(here: Path) -> None:
    program(here / "bin", "pg_xlogdump", RECORD)
    script = shell.waldump(str(here / "bin"), "pg_xlogdump", "/data/pg xlog", timeline=3, start="0/1", end="1/A0")
    ok(script, cwd=here, env={"RECORD": str(here / "r")})
    assert Recorded(here).arguments == [
        "-p",
        "/data/pg xlog",
        "-t",
        "3",
        "-r",
        "Transaction",
        "-s",
        "0/1",
        "-e",
        "1/A0",
    ]


def test_a_program_that_fails_makes_its_script_fail(here: Path) -> None:
    for name in ("psql", "pg_waldump", "pg_rewind", "patronictl"):
        program(here / "bin", name, "echo broken >&2; exit 7\n")
    binaries = str(here / "bin")
    for script in (
        shell.psql(binaries, "/s", "1", "u", "select 1"),
        shell.waldump(binaries, "pg_waldump", "/w", timeline=1, start="0/1", end="0/2"),
        shell.rewind(str(here), binaries, source="host=x", login={}, seconds=5, recovers_first=True),
        shell.remove_cluster(f"{binaries}/patronictl", "/c", "orders"),
        shell.list_cluster(f"{binaries}/patronictl", "/c", "orders"),
    ):
        assert run(script, cwd=here).status == 7


def test_the_password_of_a_rewind_is_in_no_command_line(here: Path) -> None:
    program(here / "bin", "pg_rewind", RECORD)
    secret = "hunter2'; touch executed; '$(touch executed)"
    login = {"PGUSER": "rewind user", "PGPASSWORD": secret, "PGSSLMODE": "require"}
    data = here / "p g"
    data.mkdir()
    source = "host=10.0.0.2 port=5432"
    script = shell.rewind(str(data), str(here / "bin"), source=source, login=login, seconds=9, recovers_first=False)
    ok(script, cwd=here, env={"RECORD": str(here / "r")})
    called = Recorded(here)
    assert called.arguments == [f"--target-pgdata={data}", f"--source-server={source}"]
    assert {name: called.environment[name] for name in login} == login
    assert not list(here.rglob("executed"))


def test_a_rewind_that_does_not_end_is_ended(here: Path) -> None:
    program(here / "bin", "pg_rewind", "exec sleep 60\n")
    script = shell.rewind(str(here), str(here / "bin"), source="", login={}, seconds=1, recovers_first=True)
    assert run(script, cwd=here).status == 124
    assert not (here / shell.REWOUND).exists()


def test_a_rewind_recovers_nothing_itself_and_notes_its_end(here: Path) -> None:
    program(here / "bin", "pg_rewind", RECORD)
    script = shell.rewind(str(here), str(here / "bin"), source="host=x", login={}, seconds=9, recovers_first=True)
    (here / "backup_label").write_text("BACKUP METHOD: pg_rewind\n")
    ok(script, cwd=here, env={"RECORD": str(here / "r")})
    assert Recorded(here).arguments[0] == "--no-ensure-shutdown"
    assert (here / shell.REWOUND).read_text() == f"{here / 'bin'}\nBACKUP METHOD: pg_rewind\n"


def test_the_note_of_a_rewind_counts_beside_its_own_backup_label_only(here: Path) -> None:
    (here / shell.REWOUND).write_text(f"{here / 'bin'}\nBACKUP METHOD: pg_rewind\n")
    assert shell.REWOUND not in run(shell.probe(str(here), ""), cwd=here).sections()
    for label, counts in (("BACKUP METHOD: pg_rewind\n", True), ("BACKUP METHOD: streamed\n", False)):
        (here / "backup_label").write_text(label)
        found = run(shell.probe(str(here), ""), cwd=here).sections()
        assert "backup_label" in found and (shell.REWOUND in found) is counts
        assert found["bin_dir"] == str(here / "bin")


@pytest.mark.parametrize("scope", ["orders", "$(touch executed)", "`touch executed`", "a b", "it's $HOME \\"])
def test_removing_a_cluster_answers_what_patronictl_asks(here: Path, scope: str) -> None:
    program(here / "bin", "patronictl", RECORD)
    script = shell.remove_cluster(str(here / "bin" / "patronictl"), "/etc/patroni.yml", scope)
    ok(script, cwd=here, env={"RECORD": str(here / "r")})
    called = Recorded(here)
    assert called.arguments == ["-c", "/etc/patroni.yml", "remove", scope]
    assert called.input == f"{scope}\nYes I am aware\n"
    assert not list(here.rglob("executed"))


def test_where_a_leaders_key_is_left_its_name_is_answered_too(here: Path) -> None:
    program(here / "bin", "patronictl", RECORD)
    ok(
        shell.remove_cluster(str(here / "bin" / "patronictl"), "/etc/patroni.yml", "demo", leader="n$1"),
        cwd=here,
        env={"RECORD": str(here / "r")},
    )
    assert Recorded(here).input == "demo\nYes I am aware\nn$1\n"


def test_what_is_left_of_a_cluster_is_read_also_where_there_is_no_configuration(here: Path) -> None:
    fails = "AttributeError: 'NoneType' object has no attribute 'data'"
    body = f"""case "$*" in *json*) echo '[]';; *) echo "{fails}" >&2; exit 1;; esac"""
    program(here / "bin", "patronictl", body)
    script = shell.remains_of_cluster(str(here / "bin" / "patronictl"), "/etc/patroni.yml", "it's")
    found = ok(script, cwd=here).sections()
    assert found["members"].strip() == "[]"
    assert found["config"].strip() == fails
    assert found["status"].strip() == "1"


PG_CTL = """
if [ "$1" = status ]; then test -e "$RECORD.running"; exit; fi
for argument in "$@"; do printf '%s\\0' "$argument"; done > "$RECORD.arguments"
: > "$RECORD.input"; env -0 > "$RECORD.environment"
echo "a line of the log" >> "$RECORD.log"
exit "${STATUS:-0}"
"""


def start(here: Path, status: str = "0") -> Result:
    program(here / "bin", "pg_ctl", PG_CTL)
    options = ["--port=5432", "--cluster_name=it's $(touch executed)", "two words"]
    script = shell.start_server("/data/pg", str(here / "bin"), options, log=str(here / "r.log"), seconds=30)
    return run(script, cwd=here, env={"RECORD": str(here / "r"), "STATUS": status})


def test_the_server_is_started_with_each_option_as_one(here: Path) -> None:
    result = start(here)
    assert result.status == 0 and "a line of the log" in result.sections()["log"]
    arguments = Recorded(here).arguments
    assert arguments[:-1] == ["start", "-D", "/data/pg", "-w", "-t", "30", "-l", str(here / "r.log"), "-o"]
    # pg_ctl gives its -o to a shell.
    words = subprocess.run(
        ["/bin/sh", "-c", f"printf '%s\\n' {arguments[-1]}"], capture_output=True, text=True, cwd=here, check=True
    ).stdout
    assert words.splitlines() == ["--port=5432", "--cluster_name=it's $(touch executed)", "two words"]
    assert not list(here.rglob("executed"))


def test_a_server_that_runs_is_not_started_again(here: Path) -> None:
    (here / "r.running").touch()
    assert start(here).status == 0
    assert not (here / "r.arguments").exists()


def test_a_start_that_fails_says_so_and_shows_the_log(here: Path) -> None:
    result = start(here, status="1")
    assert result.status == 1 and "a line of the log" in result.sections()["log"]


def test_a_server_is_stopped_only_where_one_runs(here: Path) -> None:
    program(here / "bin", "pg_ctl", PG_CTL)
    script = shell.stop_server("/data/p g", str(here / "bin"), mode="fast", seconds=60)
    ok(script, cwd=here, env={"RECORD": str(here / "r")})
    assert not (here / "r.arguments").exists()
    (here / "r.running").touch()
    ok(script, cwd=here, env={"RECORD": str(here / "r")})
    assert Recorded(here).arguments == ["stop", "-D", "/data/p g", "-m", "fast", "-w", "-t", "60"]


@pytest.mark.parametrize(
    ("line", "works_there", "stopped"),
    [("stopping", True, True), ("ready   ", True, False), ("standby ", True, False), ("stopping", False, False)],
)
def test_only_a_server_that_was_told_to_stop_is_helped_to(
    here: Path, line: str, works_there: bool, stopped: bool
) -> None:
    program(here / "bin", "pg_ctl", PG_CTL)
    (here / "r.running").touch()
    with subprocess.Popen(["sleep", "60"], cwd=here if works_there else "/") as server:
        lines = f"{server.pid}\n{here}\n1700000000\n5432\n/tmp\n127.0.0.1\n  1  2\n{line}\n"
        (here / "postmaster.pid").write_text(lines)
        script = shell.stop_server(str(here), str(here / "bin"), mode="immediate", seconds=30, only_stopping=True)
        result = run(script, cwd=here, env={"RECORD": str(here / "r")})
        server.kill()
    if stopped:
        assert result.status == 0 and Recorded(here).arguments[:5] == ["stop", "-D", str(here), "-m", "immediate"]
    else:
        assert result.status == 45 and "was not told to stop" in result.error
        assert not (here / "r.arguments").exists()


# A server that crashed, before pg_rewind


STANDBY_CTL = """
printf '%s\n' "$*" >> "$RECORD.calls"
case $1 in
  status) test -e "$RECORD.running";;
  start) : > "$RECORD.running"; echo "a line of the log" >> "$8"; exit "$STATUS";;
  stop) rm "$RECORD.running";;
esac
"""


def crashed(here: Path, *, status: str = "0", recovery_conf: str = "") -> Result:
    program(here / "bin", "pg_ctl", STANDBY_CTL)
    (here / "recovery.signal").touch()
    hba = str(here / "h b a")
    script = shell.recover_crashed(
        str(here), str(here / "bin"), ["-c", "x=it's $(x)"], recovery_conf=recovery_conf, hba=hba, seconds=9
    )
    return run(script, cwd=here, env={"RECORD": str(here / "r"), "STATUS": status})


def test_a_crashed_server_is_started_as_a_standby_and_stopped(here: Path) -> None:
    assert crashed(here).status == 0
    assert (here / "standby.signal").exists() and not (here / "recovery.signal").exists()
    calls = (here / "r.calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["start", "status", "stop"]
    assert calls[0].endswith("""-o -c 'x=it'"'"'s $(x)'""") and " -m fast -w " in calls[2]
    assert not (here / "h b a").exists() and not (here / ".bluegreen-recovery").exists()


def test_before_12_a_crashed_server_is_a_standby_by_its_recovery_conf(here: Path) -> None:
    assert crashed(here, recovery_conf="standby_mode = 'on'\n").status == 0
    assert (here / "recovery.conf").read_text() == "standby_mode = 'on'\n"
    assert not (here / "standby.signal").exists()


def test_a_recovery_that_fails_says_so(here: Path) -> None:
    result = crashed(here, status="1")
    assert result.status == 1 and "a line of the log" in result.error
    assert not (here / "r.running").exists(), "it may be up, and only slow"


def test_what_a_rewind_left_is_no_crash(here: Path) -> None:
    (here / "backup_label").touch()
    assert crashed(here).status == 46
    assert (here / "recovery.signal").exists() and not (here / "r.calls").exists()


def test_the_scripts_are_posix_shell(here: Path) -> None:
    checker = shutil.which("dash") or "/bin/sh"
    scripts = [
        shell.read_configuration("/x"),
        shell.probe("/x", "/y"),
        recovery(here, here),
        put_back(here, here, "standby"),
        shell.empty_data_directory("/x", system_identifier="1", bin_dir="/y", major="15"),
        shell.release_aside("/x", "y"),
        shell.release_aside("/x", None),
        shell.reload_server("/x", "/y"),
        shell.stop_server("/x", "/y", mode="immediate", seconds=1, only_stopping=True),
        shell.recover_crashed("/x", "/y", ["--a b"], recovery_conf="", hba="/h", seconds=1),
        shell.recover_crashed("/x", "/y", ["--a b"], recovery_conf="a", hba="/h", seconds=1),
    ]
    for script in scripts:
        done = subprocess.run([checker, "-n"], input=script.encode(), capture_output=True, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr


# Databases whose PG_VERSION pg_rewind has left out


def test_databases_that_came_back_without_their_version_file_get_it(here: Path) -> None:
    leader, member = here / "lea der", here / "mem ber"
    tablespace = "pg_tblspc/9/PG_13_202007201"
    for folder in ("base/1", "base/5", "base/pgsql_tmp", f"{tablespace}/5", f"{tablespace}/1"):
        (leader / folder).mkdir(parents=True)
        (member / folder).mkdir(parents=True)
    (leader / "base/6").mkdir()
    for file in ("PG_VERSION", "base/1/PG_VERSION", "base/5/PG_VERSION", "base/6/PG_VERSION"):
        (leader / file).write_text("13\n")
    (leader / tablespace / "5/PG_VERSION").write_text("13\n")
    (member / "PG_VERSION").write_text("13\n")
    (member / "base/1/PG_VERSION").write_text("13\n")

    files = run(shell.version_files(str(leader)), cwd=here).sections()["files"].splitlines()
    added = run(shell.add_version_files(str(member), files), cwd=here)

    assert added.status == 0, added.error
    # base/6 is new on the leader: WAL brings it, with its files
    assert added.output.split() == ["base/5/PG_VERSION", f"{tablespace}/5/PG_VERSION"]
    assert sorted(str(path.relative_to(member)) for path in member.rglob("PG_VERSION")) == [
        "PG_VERSION",
        "base/1/PG_VERSION",
        "base/5/PG_VERSION",
        f"{tablespace}/5/PG_VERSION",
    ]
    assert (member / "base/5/PG_VERSION").read_text() == "13\n"
    assert run(shell.add_version_files(str(member), files), cwd=here).output == ""


@pytest.mark.parametrize("collector", [True, False])
def test_the_log_of_a_server_is_read_where_its_collector_writes(here: Path, collector: bool) -> None:
    data = here / "data"
    (data / "log").mkdir(parents=True)
    (here / "pg_ctl.log").write_text("HINT:  Future log output will appear in directory\n")
    if collector:
        (data / "current_logfiles").write_text("stderr log/it is.log\n")
        (data / "log" / "it is.log").write_text(
            "FATAL:  recovery ended before configured recovery target was reached\n"
        )
    output = ok(shell.server_log(str(data), str(here / "pg_ctl.log")), cwd=here).output
    assert "HINT" in output
    assert ("FATAL:  recovery ended" in output) is collector
