"""Airflow itself is down and the release is bad: the runbook beside the journal does it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.standalone import Airflow
from tests.cluster.scene import Scene
from tests.cluster.verdict import verdict


def test_the_runbook_brings_the_old_rows_back_with_no_airflow_running(
    scene: Scene, standalone: Airflow, tmp_path: Path
) -> None:
    lab = scene.lab
    report = scene.checkpoint(label="a label with $(touch /tmp/no) and `this` @HBA@")
    held = scene.held
    path = lab.nodes[held].patroni_config
    text = path.with_name(path.name + ".bluegreen-runbook").read_text()
    assert text == report["runbook"]
    assert "password" not in text.lower()
    scene.deploy_badly()
    script = tmp_path / "rollback.sh"
    script.write_text(text)
    standalone.stop()
    try:
        done = subprocess.run(
            ["bash", str(script)],
            env={"PATH": "/usr/bin:/bin", "SSH": f"ssh -F {lab.info['ssh_config']}", "CONFIRM": lab.name},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        standalone.start()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "THE POINT OF NO RETURN IS PASSED" in done.stdout
    lab.wait_healthy(90)
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, timeline=scene.timeline + 1, after_xid=scene.xid)


def test_the_runbook_changes_nothing_unless_the_clusters_name_is_typed(scene: Scene, tmp_path: Path) -> None:
    lab = scene.lab
    script = tmp_path / "rollback.sh"
    script.write_text(scene.checkpoint()["runbook"])
    done = subprocess.run(
        ["bash", str(script)],
        env={"PATH": "/usr/bin:/bin", "SSH": f"ssh -F {lab.info['ssh_config']}"},
        input="yes\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "STOPPED: not confirmed; nothing was changed" in done.stderr
    verdict(lab, before=scene.fresh, rows=scene.rows, held=scene.held)
