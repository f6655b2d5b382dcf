"""A member that takes long to come back, and a task that does not live to see it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab.standalone import Airflow
from tests.cluster.scene import wait_for
from tests.cluster.verdict import verdict
from tests.faults import damage
from tests.faults.breakpoints import Breakpoints
from tests.faults.conftest import Stage


@pytest.mark.whole
def test_a_clone_goes_on_where_the_task_that_began_it_died(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path
) -> None:
    scene = stage.set("rollback")
    lab, third, calls = scene.lab, scene.third, tmp_path / "calls"
    mend = damage.slow_clone(damage.Place(scene, points, third, tmp_path, stoppable), calls)
    try:
        run_id = scene.trigger("rollback", **scene.rollback_conf(rejoin="reclone"))
        wait_for(f"{third} is being cloned", lambda: calls.read_text(), seconds=200)
        scene.kill_task("rollback", run_id, "rejoin")
        report = scene.finish("rollback", run_id)
    finally:
        mend()

    assert report["members"][third]["rejoined_because"] == "Patroni was cloning it already", report["members"]
    assert calls.read_text().split() == ["begun"], "the clone was begun again"
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
