"""A release that is tried again: what its first try has put back is the owner's, and stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.standalone import Airflow
from tests.cluster.scene import Scene, wait_for
from tests.cluster.test_proof import edit_yaml
from tests.cluster.verdict import look, verdict
from tests.faults import damage
from tests.faults.breakpoints import Breakpoints
from tests.faults.cases import Break, Case
from tests.faults.conftest import Stage
from tests.faults.play import broken_run


@pytest.mark.whole
def test_the_owners_settings_that_are_the_holds_too_survive_a_second_release(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path
) -> None:
    stage.keeper.reset()
    lab = stage.lab
    scene = Scene(lab, stage.airflow, look(lab))
    held = min(set(lab.names) - {scene.leader})
    edit_yaml(lab, held, "nofailover: false", "nofailover: true")
    edit_yaml(
        lab, held, '    logging_collector: "on"\n', '    logging_collector: "on"\n    hot_standby_feedback: "off"\n'
    )
    wait_for("the tag", lambda: (lab.patroni(held) or {}).get("tags", {}).get("nofailover"))
    scene.fresh = look(lab)
    path = lab.nodes[held].patroni_config
    owners = path.read_text()
    scene.checkpoint(standby=held)
    deployed = scene.deploy_badly()
    note = "# looked at during the hold\n"
    path.write_text(note + path.read_text())

    case = Case("resume", "release", "after", damage.task_killed)
    run_id = broken_run(case, damage.Place(scene, points, held, tmp_path, stoppable))

    report = scene.airflow.xcom("bluegreen_resume", run_id, "report") or {}
    assert report.get("result") == "resumed", report
    assert path.read_text() == note + owners
    was = scene.fresh.members[held]
    assert was.yaml
    was.yaml = (path.read_bytes(), *was.yaml[1:])
    verdict(lab, before=scene.fresh, rows=deployed)


@pytest.mark.whole
@pytest.mark.parametrize("written_over", [False, True])
def test_undo_tried_again_while_the_standby_is_cloned_leaves_no_hold(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path, written_over: bool
) -> None:
    scene = stage.set("checkpoint")
    lab, held, calls = scene.lab, scene.held, tmp_path / "calls"
    yaml = lab.nodes[held].patroni_config
    owners, kept = yaml.read_text(), dict[str, bytes]()

    def no_mark(place: damage.Place) -> damage.Mend:
        kept["with the hold"] = yaml.read_bytes()
        return damage.right_taken_away(place)

    def cloned(place: damage.Place) -> damage.Mend:
        """A person reloads before undo does, and has the standby made anew; then undo dies."""
        mend = damage.slow_clone(place, calls)
        lab.http.post(f"{lab.nodes[held].rest}/reload").raise_for_status()
        wait_for("the reload", lambda: "bluegreen_id" not in (lab.patroni(held) or {"tags": "bluegreen_id"})["tags"])
        if written_over:
            yaml.write_bytes(kept["with the hold"])
        lab.patronictl("reinit", lab.name, held, "--force", node=scene.leader).check_returncode()
        wait_for("the clone", lambda: calls.read_text())
        damage.task_killed(place)
        return mend

    case = Case("checkpoint", "undo", "during", cloned, first=Break("mark", "before", no_mark, "leader"))
    run_id = broken_run(case, damage.Place(scene, points, held, tmp_path, stoppable))

    report = scene.airflow.xcom("bluegreen_checkpoint", run_id, "report") or {}
    assert "The hold was released again" in report["message"], report
    assert calls.read_text().split() == ["begun"], "the clone was begun again"
    assert yaml.read_text() == owners
    verdict(lab, before=scene.fresh, rows=scene.rows, seconds=120)
    assert scene.locks() == []
