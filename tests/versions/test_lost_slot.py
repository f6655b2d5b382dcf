"""A released standby whose slot is lost is cloned; Patroni before 4 does not make such a slot anew."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from tests.cluster.scene import Scene, wait_for
from tests.cluster.test_holds import lose_slot
from tests.cluster.verdict import contents
from tests.versions.inline import Inline
from tests.versions.verdict import verdict

CLONE_SECONDS = 400


def test_the_task_says_which_slot_a_person_drops_where_patroni_keeps_a_lost_one(scene: Scene) -> None:
    lab, held, leader = scene.lab, "n2", scene.leader
    lose_slot(scene)
    rows = contents(lab, leader)
    assert isinstance(scene.airflow, Inline) and scene.held == held
    advice = f"select pg_drop_replication_slot('{held}')"
    log, ended = scene.airflow.log, threading.Event()
    begin = log.stat().st_size

    def person() -> bool:
        def advised() -> bool:
            with log.open("rb") as file:
                file.seek(begin)
                return ended.is_set() or advice.encode() in file.read()

        wait_for("the task says what to do, or ends", advised, CLONE_SECONDS)
        if not ended.is_set():
            lab.sql(leader, advice, database="postgres")
        return not ended.is_set()

    with ThreadPoolExecutor() as pool:
        acted = pool.submit(person)
        try:
            report = scene.must("resume")
        finally:
            ended.set()

    version = str((lab.patroni(leader) or {})["patroni"]["version"])
    assert acted.result() is (int(version.partition(".")[0]) < 4), version
    assert report["members"][held]["rejoined_by"] == "reclone", report["members"]
    verdict(lab, before=scene.fresh, rows=rows)
