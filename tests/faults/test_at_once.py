"""Two runs that want the same cluster at the same moment: one does its work, the other is refused and says why."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.cluster.scene import Scene
from tests.cluster.verdict import verdict

RESULTS = {"rollback": "rolled_back", "resume": "resumed", "checkpoint": "held"}


def one_of(scene: Scene, wanted: list[tuple[str, dict[str, Any]]]) -> tuple[str, dict[str, Any], str]:
    """Start two runs at once; return DAG and report of the one that succeeds, and the refusal of the other."""
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda one: (one[0], *scene.run(one[0], **one[1])), wanted))
    found = [(dag, state, str(report.get("result"))) for dag, state, report in ended]
    assert sorted(state for _, state, _ in found) == ["failed", "success"], found
    refusal, work = sorted((report for _, _, report in ended), key=lambda report: report["result"] != "refused")
    (dag,) = [dag for dag, state, result in found if (state, result) == ("success", RESULTS[dag])]
    assert refusal["result"] == "refused", refusal
    return dag, work, str(refusal["message"])


@pytest.mark.parametrize("other", ["rollback", pytest.param("resume", marks=pytest.mark.whole)])
def test_of_two_that_end_a_checkpoint_one_does(scene: Scene, other: str) -> None:
    scene.checkpoint()
    deployed = scene.deploy_badly()

    won, _, sentence = one_of(scene, [(dag, scene.conf(dag)) for dag in ("rollback", other)])

    # the lock's owner is named where it was met, and the checkpoint where that was gone already
    assert "locked by" in sentence or "no checkpoint" in sentence, sentence
    if won == "rollback":
        verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    else:
        verdict(scene.lab, before=scene.fresh, rows=deployed)
    assert scene.locks() == []


@pytest.mark.whole
@pytest.mark.parametrize("standbys", [("", ""), ("n2", "n3")], ids=["any standby", "two standbys"])
def test_of_two_checkpoints_one_is_held(scene: Scene, standbys: tuple[str, str]) -> None:
    wanted = [("checkpoint", {"label": f"for {name}", **({"standby": name} if name else {})}) for name in standbys]
    _, report, sentence = one_of(scene, wanted)

    assert "locked by" in sentence or report["checkpoint"]["id"] in sentence, sentence
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, held=report["checkpoint"]["held"])
    assert scene.locks() == []


@pytest.mark.whole
def test_a_rollback_that_takes_over_ends_a_deployment_that_still_runs(scene: Scene) -> None:
    goes_on = "psql -XAtc \"select 1 / (to_regclass('go_on') is not null)::int\""
    run_id = scene.deploying(f"until {goes_on}; do sleep 1; done", ["select true"])
    scene.deploy_badly()

    scene.rollback(take_over=True)

    assert scene.is_in("deploy", run_id, "deploy", "running"), "the deployment had ended before"
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    # its own resume finds nothing that it could end, and nobody is told that it was deployed
    scene.lab.sql(scene.held, "create table go_on ()", user="release")
    state = scene.airflow.wait("bluegreen_deploy", run_id, seconds=400)
    report = scene.airflow.xcom("bluegreen_deploy", run_id, "report")
    assert report
    assert state == "failed" and report["result"] != "deployed", report
    assert "no checkpoint" in report["message"], report
    scene.lab.sql(scene.leader, "drop table go_on", user="release")
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
