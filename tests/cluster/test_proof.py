"""A hold is proven, not believed (hazard H2)."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import yaml
from lab.cluster import Lab
from lab.standalone import Airflow
from tests.cluster.scene import Scene, has, wait_for
from tests.cluster.verdict import look, unchanged, verdict

SCRIPT = Path(__file__).with_name("mark_by_hand.py")


def edit_yaml(lab: Lab, name: str, old: str, new: str) -> None:
    """Edit Patroni's YAML as a person would, and have Patroni read it."""
    path = lab.nodes[name].patroni_config
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    lab.http.post(f"{lab.nodes[name].rest}/reload").raise_for_status()


def test_a_checkpoint_that_was_lost_is_refused(scene: Scene) -> None:
    lab = scene.lab
    scene.checkpoint()
    held = scene.held
    new = scene.deploy_badly()
    edit_yaml(lab, held, 'recovery_min_apply_delay: "20d"', 'recovery_min_apply_delay: "0"')
    wait_for("the held member replays the deployment", lambda: has(lab, held, new))
    before = look(lab)

    sentence = scene.refused("rollback", **scene.rollback_conf())

    assert f"checkpoint {scene.record['id']} is lost: {held} has replayed transaction {scene.xid}" in sentence, sentence
    assert "Nothing was changed" in sentence
    unchanged(lab, before)

    # what a person does then: only the hold's own keys go, the edit by hand stays, and the report says so
    report = scene.must("resume", checkpoint=scene.record["id"])
    assert any("was edited during the hold" in warning for warning in report["warnings"]), report["warnings"]
    before = copy.deepcopy(scene.fresh)
    now, was = lab.nodes[held].patroni_config, before.members[held]
    assert was.yaml
    wanted = yaml.safe_load(was.yaml[0])
    left = yaml.safe_load(now.read_text())
    assert left["postgresql"].pop("recovery_conf") == {"recovery_min_apply_delay": "0"}
    assert left == wanted
    was.yaml = (now.read_bytes(), *was.yaml[1:])
    verdict(lab, before=before, rows=new)


def test_a_mark_that_the_standby_has_applied_is_taken_again(scene: Scene, standalone: Airflow) -> None:
    """The operators themselves, step by step: the hold is without effect while the first mark is taken."""
    lab = scene.lab
    held = next(name for name in lab.names if name != scene.leader)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), lab.name, held, str(lab.info["run"])],
        env={
            **standalone.environment,
            "PYTHONPATH": f"{standalone.environment['AIRFLOW__CORE__PLUGINS_FOLDER']}:{SCRIPT.parents[2]}",
        },
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["marks"] == 2, found
    assert found["xids"][0] < found["xids"][1] == found["checkpoint"]["xid"]
    scene.record = found["checkpoint"]
    assert scene.journal()["xid"] == found["xids"][1]
    new = scene.deploy_badly()
    verdict(lab, before=scene.fresh, rows=new, held=held)

    scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=found["xids"][1])
