"""Hostile text wherever text comes in: it is refused in one sentence or taken literally, and never run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab.cluster import Lab
from tests.cluster.scene import LOCK, Scene, wait_for
from tests.cluster.verdict import look, unchanged
from tests.versions.liars import is_a_sentence, registry
from tests.versions.people import edit_yaml, reload

MARK = Path("/tmp/bluegreen-hostile-mark")
SQL_MARK = "bluegreen_hostile"
PAYLOADS = {
    "substitution": f"$(touch {MARK})",
    "backticks": f"`touch {MARK}`",
    "command": f"; touch {MARK} #",
    "quotes": f"'; touch {MARK}; '\"; touch {MARK}; \"",
    "newline": f"x\ntouch {MARK}\n",
    "here-document": f"x\nBLUEGREEN_END\ntouch {MARK}\n",
    "jinja": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ 1 + 1 }}{% raw %}",
    "format": "{0.__class__} %s %(x)s {member}",
    "sql": f"'; create table {SQL_MARK} (); create role {SQL_MARK}; --",
    "dollar": f"$$; create role {SQL_MARK}; $$",
    "path": "../../../../etc/passwd",
    "option": "--help",
    "nul": "a\x00b",
    "escape": "\x1b[31m\x1b]0;x\x07",
    "right to left": "\u202edrop\u2066",
    "long": "x" * 20_000,
}
LITERAL = [name for name, text in PAYLOADS.items() if text.isprintable() and len(text) <= 200]


@pytest.fixture(autouse=True)
def never_run(lab: Lab) -> Any:
    """No payload has left its mark on a machine, which all nodes and Airflow share here, or in SQL."""
    MARK.unlink(missing_ok=True)
    yield
    assert not MARK.exists(), "a payload was run by a shell"
    query = "select relname from pg_class where relname = %s union select rolname from pg_roles where rolname = %s"
    for database in ("app", "postgres"):
        assert lab.sql(lab.wait_leader(), query, (SQL_MARK, SQL_MARK), database=database) == []


def refused(scene: Scene, dag: str, **conf: Any) -> str:
    """Run a DAG that must be refused in one sentence."""
    sentence = scene.refused(dag, **conf)
    assert is_a_sentence(sentence), repr(sentence[:3000])
    return sentence


CHECKPOINT_PARAMS = ("cluster", "standby")
DEPLOY_PARAMS: dict[str, Any] = {
    "cluster": str,
    "deployment": str,
    "label": str,
    "command": str,
    "sql": str,
    "checks": lambda text: [text],
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_checkpoints_params(clean: Scene, payload: str) -> None:
    text = PAYLOADS[payload]
    name = CHECKPOINT_PARAMS[list(PAYLOADS).index(payload) % len(CHECKPOINT_PARAMS)]
    refused(clean, "checkpoint", **{name: text})
    if payload not in LITERAL:
        refused(clean, "checkpoint", label=text)
    unchanged(clean.lab, clean.fresh)


@settings(max_examples=5, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["cluster", "standby"]),
    text=st.text(min_size=1, max_size=60).map(lambda text: f"{text}$(touch {MARK}){text[::-1]}"),
)
def test_any_text_in_a_checkpoints_params(clean: Scene, name: str, text: str) -> None:
    refused(clean, "checkpoint", **{name: text})


def test_a_deployments_params_where_none_is_allowed(clean: Scene, run_folder: Path) -> None:
    """What is ad hoc is refused whatever it holds; nothing of it is read before."""
    names = list(DEPLOY_PARAMS)
    with registry(clean.lab, run_folder, lambda entry: entry.update(adhoc=False)):
        for number, text in enumerate(PAYLOADS.values()):
            name = names[number % len(names)]
            refused(clean, "deploy", **{name: DEPLOY_PARAMS[name](text)})
    unchanged(clean.lab, clean.fresh)


def test_what_names_a_file_outside_is_refused(clean: Scene) -> None:
    for path in ("../../../../etc/passwd", "/etc/passwd", "demo/../../README.md", "no/such.sql", "\x00", "."):
        refused(clean, "deploy", sql=path, checks=["select true"])
    unchanged(clean.lab, clean.fresh)


def test_a_label_is_taken_literally_and_every_param_of_a_rollback_is_refused(scene: Scene) -> None:
    lab = scene.lab
    label = "".join(PAYLOADS[name] for name in ("substitution", "backticks", "command", "sql"))[:200]
    assert label.isprintable()
    edit_yaml(lab, "n3", "nofailover: false", f"nofailover: false\n  evil: {json.dumps(PAYLOADS['quotes'])}")
    reload(lab, "n3")
    wait_for("the tag", lambda: (lab.patroni("n3") or {}).get("tags", {}).get("evil"))
    scene.checkpoint(label=label, standby="n3")
    assert (lab.patroni("n3") or {})["tags"]["bluegreen_label"] == label
    assert (lab.patroni("n3") or {})["tags"]["evil"] == PAYLOADS["quotes"]
    assert scene.journal()["label"] == label
    before = look(lab)
    places: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
        ("rollback", lambda text: scene.rollback_conf(cluster=text)),
        ("rollback", lambda text: scene.rollback_conf(checkpoint=text)),
        ("rollback", lambda text: scene.rollback_conf(confirm=text)),
        ("rollback", lambda text: scene.rollback_conf(hosts_down=[text])),
        ("rollback", lambda text: scene.rollback_conf(hosts_down=["n9"], reason=text, break_lock=text)),
        ("resume", lambda text: {"checkpoint": text}),
    ]
    # a run takes seconds: each payload goes to one place, and each place gets several
    for number, text in enumerate(PAYLOADS.values()):
        dag, conf = places[number % len(places)]
        refused(scene, dag, **conf(text))
    unchanged(lab, before)

    lock = {"operation": PAYLOADS["newline"], "dag_id": "x", "run_id": PAYLOADS["substitution"], "person": "\x1b[2J\n"}
    place = lab.nodes["n3"].patroni_config
    path = place.with_name(place.name + LOCK)
    path.write_text(json.dumps(lock))
    locked = look(lab)
    assert "is locked by" in refused(scene, "rollback", **scene.rollback_conf(break_lock=PAYLOADS["backticks"]))
    for content in (b"\xff\xfe\x00", b"$(touch x)", b"[" * 100_000, b""):
        path.write_bytes(content)
        refused(scene, "rollback", **scene.rollback_conf())
    path.write_text(json.dumps(lock))
    unchanged(lab, locked)
    path.unlink()

    journals = {name: scene.journal_path(name) for name in lab.names}
    good = {name: path.read_bytes() for name, path in journals.items()}
    record = json.loads(good["n3"])
    wrong: dict[str, dict[str, Any]] = {
        "a held member that is none": {"held": PAYLOADS["substitution"]},
        "a leader that is none": {"leader": PAYLOADS["substitution"], "lsn": "x'; --"},
        "a member's hostile name": {"members": {**record["members"], PAYLOADS["command"]: record["members"]["n1"]}},
        "an LSN": {"lsn": f"0/0'; create role {SQL_MARK}; --"},
        "a transaction": {"xid": f"1; create role {SQL_MARK}"},
        "another system": {"system_identifier": PAYLOADS["sql"]},
        "another cluster": {"cluster": PAYLOADS["jinja"]},
        "another id": {"id": PAYLOADS["path"]},
    }
    for what, change in wrong.items():
        for path in journals.values():
            path.write_text(json.dumps({**record, **change}))
        changed = look(lab)
        assert refused(scene, "rollback", **scene.rollback_conf()), what
        unchanged(lab, changed)
    for content in (b"\xff\xfe\x00", b"$(touch x)", b"[" * 100_000, b"", b"{}", good["n3"][:-40]):
        journals["n3"].write_bytes(content)
        refused(scene, "rollback", **scene.rollback_conf())
    for name, path in journals.items():
        path.write_bytes(good[name])
    unchanged(lab, before)
    scene.must("resume", checkpoint=scene.record["id"])


REGISTRY: dict[str, Any] = {
    "patroni": lambda text: {"patroni": [f"http://{text}:8008"]},
    "postgres_conn_id": lambda text: {"postgres_conn_id": text},
    "ssh_conn_id": lambda text: {"ssh_conn_id": text},
    "ssh_hosts": lambda text: {"ssh_hosts": {"n1": text}},
    "ssh_hosts' member": lambda text: {"ssh_hosts": {text: "127.0.0.1"}},
    "ssh_host_keys": lambda text: {"ssh_host_keys": {"n1": text}},
    "os_user": lambda text: {"node": {"os_user": text}},
    "patroni_config": lambda text: {"node": {"patroni_config": text}},
    "lag_bytes": lambda text: {"limits": {"lag_bytes": text}},
    "expires_after": lambda text: {"expires_after": text},
}


@pytest.mark.parametrize("key", REGISTRY)
def test_a_registrys_value(clean: Scene, run_folder: Path, key: str) -> None:
    for payload in ("substitution", "newline", "quotes", "right to left"):
        change = REGISTRY[key](PAYLOADS[payload])
        with registry(clean.lab, run_folder, lambda entry, change=change: entry.update(change)):
            refused(clean, "checkpoint")
    unchanged(clean.lab, clean.fresh)


def test_a_path_of_the_registry_is_one_word(clean: Scene, run_folder: Path) -> None:
    """Paths may hold anything printable; a shell must not read it."""
    folder = Path(str(clean.lab.nodes["n1"].patroni_config.parent.parent))
    for change in (
        {"patronictl": f"{clean.lab.info['patronictl']}; touch {MARK}"},
        {"patroni_config": f"{folder}/{{member}}/$(touch {MARK})"},
    ):
        with registry(clean.lab, run_folder, lambda entry, change=change: entry["node"].update(change)):
            state, report = clean.run("checkpoint")
        assert state == "failed" and is_a_sentence(report["message"]), report
    unchanged(clean.lab, clean.fresh)
