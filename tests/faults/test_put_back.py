"""A rollback fails before the promotion: what serves again, what it has kept, and what the report says of it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from lab.standalone import Airflow
from tests.cluster.scene import has, wait_for
from tests.cluster.test_clearing import clear
from tests.cluster.test_writers import LEDGER, Writer
from tests.cluster.verdict import contents, verdict
from tests.faults import damage
from tests.faults.breakpoints import Breakpoints
from tests.faults.cases import Case
from tests.faults.conftest import Stage
from tests.faults.play import RUN_SECONDS, broken_run

from bluegreen.operators.put_back import LEADS_SECONDS


@pytest.mark.whole  # the server is slowed by a mount, which a container may not make
@pytest.mark.parametrize("failover", [False, True], ids=["", "after a failover"])
def test_no_commit_is_lost_and_a_lost_checkpoint_can_be_released(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path, failover: bool
) -> None:
    scene = stage.set("rollback")
    lab = scene.lab
    if failover:
        old = scene.leader
        lab.stop_patroni(old)
        new = scene.wait_failover(old)
        lab.start_patroni(old)
        streams = "select 1 from pg_stat_replication where state = 'streaming' and application_name = %s"
        wait_for(f"{old} streams", lambda: lab.sql(new, streams, [old], database="postgres"), seconds=90)
    leader, third = scene.leader, scene.third
    lab.sql(leader, LEDGER, user="release")
    rows = contents(lab, leader)
    wait_for("the ledger on the third", lambda: has(lab, third, rows))
    stop = threading.Event()
    writer = Writer(lab, "writer", [lab.nodes[leader].host], stop)

    def lost_and_slow(place: damage.Place) -> damage.Mend:
        damage.mark_not_in_wal(place)
        # any replica would win against a server that is not up yet
        return damage.slow_server(replace(place, member=leader))

    def third_is_stopped() -> float:
        wait_for("the third is stopped", lambda: stop.is_set() or lab.postmaster(third) is None, RUN_SECONDS, 0.02)
        return time.time()

    with ThreadPoolExecutor() as pool:
        try:
            pool.submit(writer.run)
            alone = pool.submit(third_is_stopped)
            case = Case("rollback", "recover", "before", lost_and_slow)
            place = damage.Place(scene, points, scene.held, tmp_path, stoppable)
            run_id = broken_run(case, place)
            ended = time.time()
            wait_for(
                "the old leader takes writes again",
                lambda: any(write.acknowledged and write.begun > ended for write in list(writer.writes)),
            )
        finally:
            stop.set()
    alone_since = alone.result()
    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")
    assert "The old cluster was put back into service" in report["message"], report
    assert "is lost" in report["message"] and "Run bluegreen_resume" in report["message"], report

    acknowledged = [(write.id, write.begun, write.acknowledged) for write in writer.writes if write.acknowledged]
    gaps = [(after[1] - before[2], number) for number, (before, after) in enumerate(pairwise(acknowledged), 1)]
    on_it_alone = [one for one in acknowledged[: max(gaps)[1]] if one[2] > alone_since]
    assert len(on_it_alone) > 20, "the leader committed nothing on its own"
    assert scene.leader == leader, "another member won"
    there = {str(key) for (key,) in lab.sql(leader, "select id from ledger")}
    assert [id for id, _, _ in acknowledged if id not in there] == []

    scene.must("resume")
    verdict(lab, before=scene.fresh, rows=contents(lab, leader), leader=leader)


@pytest.mark.whole
def test_an_old_leader_that_recovers_from_its_crash_leads_before_the_others_start(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path
) -> None:
    scene = stage.set("rollback")
    lab, leader = scene.lab, scene.leader
    slow = LEADS_SECONDS + 15

    def crashed_and_lost(place: damage.Place) -> damage.Mend:
        damage.mark_not_in_wal(place)
        lab.kill_patroni(leader)
        lab.kill_postgres(leader)
        return damage.slow_server(replace(place, member=leader), seconds=slow, mode="--single")

    case = Case("rollback", "stop", "before", crashed_and_lost)
    began = time.monotonic()
    run_id = broken_run(case, damage.Place(scene, points, scene.held, tmp_path, stoppable))

    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")
    assert time.monotonic() - began > slow, "its recovery was not slow"
    assert "The old cluster was put back into service" in report["message"], report
    assert not any("does not lead again" in warning for warning in report["warnings"]), report["warnings"]
    assert scene.leader == leader, "another member won"
    assert contents(lab, leader) == stage.deployed
    scene.must("resume")
    verdict(lab, before=scene.fresh, rows=stage.deployed)


@pytest.mark.whole
def test_a_refused_rollback_puts_back_what_a_former_one_has_stopped(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path
) -> None:
    scene = stage.set("rollback")
    lab = scene.lab

    def lost_and_nobody_starts(place: damage.Place) -> damage.Mend:
        damage.mark_not_in_wal(place)
        return damage.program("ctl", "fails")(place)

    case = Case("rollback", "recover", "before", lost_and_nobody_starts)
    run_id = broken_run(case, damage.Place(scene, points, scene.held, tmp_path, stoppable))

    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")
    assert "Putting the old cluster back into service failed too" in report["message"], report
    assert lab.leader() is None

    said = scene.refused("rollback", **scene.rollback_conf())
    assert "is lost" in said and "The old cluster was put back into service, with the deployment in it; but" in said, (
        said
    )
    assert "Nothing was changed" not in said
    assert contents(lab, scene.leader) == stage.deployed
    scene.must("resume")
    verdict(lab, before=scene.fresh, rows=stage.deployed)


@pytest.mark.whole
def test_a_member_on_which_nothing_depends_keeps_nobody_from_serving(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path
) -> None:
    scene = stage.set("rollback")
    lab, leader, third, serving = scene.lab, scene.leader, scene.third, []

    def unreachable(place: damage.Place) -> damage.Mend:
        give_back = damage.ssh_refused(replace(place, member=third))

        def mend() -> None:
            serving.append((scene.leader, contents(lab, leader), lab.postmaster(third)))
            give_back()

        return mend

    case = Case("rollback", "recover", "before", unreachable)
    run_id = broken_run(case, damage.Place(scene, points, scene.held, tmp_path, stoppable))

    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")
    assert "The old cluster was put back into service" in report["message"], report
    assert any(f"{third} cannot be read" in warning for warning in report["warnings"]), report["warnings"]
    assert serving == [(leader, stage.deployed, None)]

    _, report = clear(scene, "rollback", run_id, "put_back")
    assert "The old cluster was put back into service" in report["message"], report
    # H7: a held standby that was restarted starts no receiver
    verdict(lab, before=scene.fresh, rows=stage.deployed, leader=leader, held=scene.held, held_streams=False)
    scene.rollback()
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


def test_the_others_serve_where_the_held_member_cannot_be_started(
    stage: Stage, points: Breakpoints, stoppable: Airflow, tmp_path: Path
) -> None:
    scene = stage.set("rollback")
    lab, serving = scene.lab, []

    def rooted(place: damage.Place) -> damage.Mend:
        give_back = damage.hba_of_root(place)

        def mend() -> None:
            serving.append(contents(lab, scene.leader))
            give_back()

        return mend

    case = Case("rollback", "recover", "before", rooted)
    run_id = broken_run(case, damage.Place(scene, points, scene.held, tmp_path, stoppable))

    report = scene.airflow.xcom("bluegreen_rollback", run_id, "report")
    assert report["result"] == "failed", report
    assert "The old cluster was put back into service, with the deployment in it" in report["message"], report
    assert f"; but {scene.held}, the held member," in report["message"], report
    assert "was proven again" not in report["message"] and "may serve nobody" not in report["message"], report
    assert any(f"{scene.held}, the held member," in warning for warning in report["warnings"]), report["warnings"]
    assert serving == [stage.deployed]

    scene.rollback()
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
