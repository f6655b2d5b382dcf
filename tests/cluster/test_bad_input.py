"""Bad input gets one clear sentence, within seconds, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.client import AirflowClient
from lab.cluster import Lab
from lab.standalone import Airflow
from ruamel.yaml import YAML
from tests.cluster.scene import LOCK, Scene, of_root, wait_for
from tests.cluster.verdict import look, unchanged, verdict

FIRST_TASK_SECONDS = 20
LEGAL_LABEL = """it's a "label" $(touch /tmp/bluegreen-was-here) `id` {{ 1 + 1 }} %s : #no ; drop table orders; -- ü"""

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBmJBmM2sTHv0yGvN3KsvRGYPpdyXWgS1ZCGqYp0cB9"


@pytest.fixture(scope="module")
def broken_clusters(lab: Lab, airflow: AirflowClient, standalone: Airflow) -> Iterator[None]:
    """More clusters in the registry: the same lab, each with one mistake in how it is reached."""
    path = Path(standalone.environment["BLUEGREEN_CLUSTERS"])
    text = path.read_text()
    yaml = YAML()
    registry = yaml.load(text)
    good = registry["clusters"][lab.name]
    first = next(iter(lab.nodes.values()))

    def variant(**changes: Any) -> Any:
        return {**json.loads(json.dumps(good)), **changes}

    registry["clusters"] |= {
        "demo_badpw": variant(postgres_conn_id="test_bad_password"),
        "demo_noconn": variant(ssh_conn_id="test_there_is_none"),
        "demo_badkey": variant(ssh_host_keys=dict.fromkeys(lab.names, OTHER_KEY)),
        "demo_closed": variant(ssh_conn_id="test_closed_port"),
        "demo_nobody": variant(patroni=[f"http://{first.host}:1"]),
    }
    connections = [
        {
            "connection_id": "test_bad_password",
            "conn_type": "postgres",
            "host": first.host,
            "login": "bluegreen",
            "password": "wrong",
            "schema": "app",
        },
        {
            "connection_id": "test_closed_port",
            "conn_type": "ssh",
            "host": first.host,
            "login": lab.info["ssh_user"],
            "port": 1,
            "extra": json.dumps({"key_file": lab.info["ssh_key"], "no_host_key_check": False}),
        },
    ]
    for connection in connections:
        airflow.request("DELETE", f"connections/{connection['connection_id']}")
        answer = airflow.request("POST", "connections", connection)
        assert answer.status_code == 201, answer.text
    with path.open("w") as file:
        yaml.dump(registry, file)
    yield
    path.write_text(text)
    for connection in connections:
        airflow.request("DELETE", f"connections/{connection['connection_id']}")


def refuse_all(scene: Scene, cases: dict[str, tuple[str, dict[str, Any], str]]) -> None:
    """Run all cases side by side; each must be refused quickly, with the words it names; report all that are not."""
    runs = {
        name: (
            f"bluegreen_{dag}",
            scene.airflow.trigger(f"bluegreen_{dag}", {"cluster": scene.lab.name, **conf}),
            words,
        )
        for name, (dag, conf, words) in cases.items()
    }
    wrong = []
    for name, (dag, run_id, words) in runs.items():
        state = scene.airflow.wait(dag, run_id, seconds=200)
        report = scene.airflow.xcom(dag, run_id, "report") or {}
        message = str(report.get("message"))
        first = min(scene.airflow.tasks(dag, run_id), key=lambda task: task["start_date"] or "9")
        if state != "failed" or report.get("result") != "refused":
            wrong.append(f"{name}: {state}, {report.get('result')}: {message}")
        elif words not in message or "Traceback" in message or "\n" in message:
            wrong.append(f"{name}: said {message!r}, expected {words!r} in it")
        elif first["duration"] > FIRST_TASK_SECONDS:
            wrong.append(f"{name}: took {first['duration']:.0f} s")
    assert not wrong, "\n" + "\n".join(wrong)


def test_what_a_checkpoint_refuses(clean: Scene) -> None:
    before, leader = look(clean.lab), clean.leader
    refuse_all(
        clean,
        {
            "unknown cluster": ("checkpoint", {"cluster": "nowhere"}, "nowhere"),
            "unknown member": (
                "checkpoint",
                {"standby": "n9"},
                f"found no member 'n9' in the cluster; its members are {', '.join(clean.lab.names)}: give one of those",
            ),
            "leader as standby": ("checkpoint", {"standby": leader}, f"{leader} is the leader; expected a standby."),
            "label of two lines": (
                "checkpoint",
                {"label": "one\ntwo"},
                "found as label: 'one\\ntwo'; expected at most 200 printable characters on one line.",
            ),
            "label too long": (
                "checkpoint",
                {"label": "x" * 10_000},
                "found as label: 10000 characters; expected at most 200 printable characters on one line.",
            ),
            "label with a control character": ("checkpoint", {"label": "a\x1b[31m"}, "found as label:"),
            "rollback without a checkpoint": (
                "rollback",
                {"checkpoint": "bg_1", "confirm": clean.lab.name},
                f"{clean.lab.name} holds no checkpoint (no journal on any member); there is nothing to roll back to",
            ),
            "resume without a checkpoint": ("resume", {}, f"{clean.lab.name} holds no checkpoint"),
        },
    )
    unchanged(clean.lab, before)


def test_what_would_fail_only_after_everybody_was_stopped_is_refused(clean: Scene) -> None:
    lab = clean.lab
    name = next(one for one in lab.names if one != clean.leader)
    before = look(lab)
    hba, config = lab.nodes[name].data_dir / "pg_hba.conf", lab.nodes[name].patroni_config
    text = config.read_text()
    with of_root(hba):
        said = clean.refused("checkpoint", standby=name)
    assert "pg_hba.conf: it belongs to another user; expected that" in said

    assert text.count("username: postgres") == 1, text
    config.write_text(text.replace("username: postgres", "username: test_nobody"))
    try:
        said = clean.refused("checkpoint", standby=name)
    finally:
        config.write_text(text)
    assert "there is no superuser who may log in, expected role 'test_nobody'" in said
    unchanged(lab, before)


def test_a_cluster_that_cannot_be_reached_is_refused_within_seconds(clean: Scene, broken_clusters: None) -> None:
    before = look(clean.lab)
    host = next(iter(clean.lab.nodes.values())).host
    refuse_all(
        clean,
        {
            "no such connection": (
                "checkpoint",
                {"cluster": "demo_noconn"},
                "the connection 'test_there_is_none' cannot be used",
            ),
            "wrong host key": ("checkpoint", {"cluster": "demo_badkey"}, "the SSH host key is not the expected one"),
            "wrong password": ("checkpoint", {"cluster": "demo_badpw"}, "PostgreSQL refused the connection"),
        },
    )
    # what may be better in a moment is tried again, and then fails
    for cluster, words in (
        ("demo_closed", "SSH does not answer on port 1"),
        ("demo_nobody", f"no Patroni of cluster 'demo_nobody' answers: http://{host}:1/cluster does not answer"),
    ):
        state, report = clean.run("checkpoint", cluster=cluster)
        assert state == "failed" and words in report["message"], (cluster, state, report.get("message"))
    unchanged(clean.lab, before)


def test_what_is_refused_while_a_checkpoint_is_held(scene: Scene) -> None:
    lab = scene.lab
    label = LEGAL_LABEL
    scene.checkpoint(label=label)
    assert (lab.patroni(scene.held) or {})["tags"]["bluegreen_label"] == label, "the label is not verbatim"
    assert scene.journal()["label"] == label
    assert not Path("/tmp/bluegreen-was-here").exists()
    before, name, own = look(lab), lab.name, scene.record["id"]
    refuse_all(
        scene,
        {
            "second checkpoint": ("checkpoint", {}, f"{name} already holds checkpoint {own} (held, label"),
            "another's id": (
                "rollback",
                scene.rollback_conf(checkpoint="bg_another"),
                f"the checkpoint held is {own}, found 'bg_another'; give the one that is held",
            ),
            "no id": ("rollback", scene.rollback_conf(checkpoint="../../etc"), "expected an id such as"),
            "not confirmed": (
                "rollback",
                scene.rollback_conf(confirm="demo2"),
                f"confirm is 'demo2'; expected the cluster's name typed again: {name}",
            ),
            "resume of another": ("resume", {"checkpoint": "bg_another"}, f"the checkpoint held is {own}"),
            "hosts that are up": ("rollback", scene.rollback_conf(hosts_down=["n9"]), "n9"),
        },
    )
    unchanged(lab, before)

    # another run works on the cluster
    path = lab.nodes[scene.held].patroni_config
    lock = path.with_name(path.name + LOCK)
    owner = {"operation": "rollback", "dag_id": "bluegreen_rollback", "run_id": "someone_elses", "person": "anna"}
    lock.write_text(json.dumps({**owner, "since": "2026-01-01T00:00:00+00:00"}))
    lab.ssh(scene.held, "true")
    locked = look(lab)
    refuse_all(
        scene,
        {
            "rollback while locked": (
                "rollback",
                scene.rollback_conf(),
                f"{name} is locked by rollback (run someone_elses by anna, since 2026-01-01T00:00:00+00:00)",
            ),
            "resume while locked": ("resume", {}, f"{name} is locked by rollback (run someone_elses by anna"),
        },
    )
    unchanged(lab, locked)
    lock.unlink()

    # the server's file became another user's after the checkpoint
    with of_root(lab.nodes[scene.held].data_dir / "pg_hba.conf"):
        words = "pg_hba.conf: it belongs to another user; expected"
        refuse_all(scene, {"a file of root": ("rollback", scene.rollback_conf(), words)})
    unchanged(lab, before)


def test_a_patroni_yaml_that_cannot_be_parsed_is_refused(scene: Scene) -> None:
    lab = scene.lab
    name = next(name for name in lab.names if name != scene.leader)
    path = lab.nodes[name].patroni_config
    text = path.read_bytes()
    path.write_bytes(text + b"\n  - this: [is no\n yaml\n")
    before = look(lab)

    where = f"{name} ({lab.nodes[name].host}): {lab.there(name, str(path))}"
    refuse_all(scene, {"unparsable": ("checkpoint", {}, where)})

    unchanged(lab, before)
    path.write_bytes(text)
    scene.checkpoint()
    scene.must("resume")
    wait_for("no lock", lambda: not scene.locks())
    verdict(lab, before=scene.fresh, rows=scene.rows)
