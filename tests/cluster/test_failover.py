"""A failover during the hold, and timeline numbers that are used already (hazards H5 and H6)."""

from __future__ import annotations

import json
import re

import pytest
from tests.cluster.scene import Scene, wait_for
from tests.cluster.verdict import contents, history_files, look, unchanged, verdict


def test_a_rollback_after_a_failover_gives_all_members_one_history(scene: Scene) -> None:
    """H5b and H6: the leader dies during the hold; the held standby is not elected and does not know the timeline."""
    lab = scene.lab
    scene.checkpoint()
    held, old, third = scene.held, scene.leader, scene.third
    scene.deploy_badly()

    scene.kill(old)
    assert scene.wait_failover(old) == third, "the held member must not be elected"
    lab.sql(third, "insert into orders select i, 'after the failover', i from generate_series(5000, 5100) i")
    used = f"{scene.timeline + 1:08X}.history"
    wait_for("the new leader's history file", lambda: used in history_files(lab.nodes[third]))
    assert contents(lab, held) == scene.rows

    scene.rollback()

    picture = verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)
    assert picture.members[held].timeline == scene.timeline + 2, "the new timeline's number was in use"


@pytest.mark.whole
def test_a_rollback_takes_a_timeline_number_that_nobody_has_used(scene: Scene) -> None:
    """H5a: replicas promoted themselves onto the next numbers before they were stopped."""
    lab = scene.lab
    scene.checkpoint()
    held, old, third = scene.held, scene.leader, scene.third
    scene.deploy_badly()

    lab.stop_patroni(old)
    assert scene.wait_failover(old) == third, "the held member must not be elected"
    lab.sql(third, "insert into orders values (7001, 'on the second timeline', 1)")
    lab.start_patroni(old)
    wait_for(
        f"{old} streams from {third}",
        lambda: lab.sql(
            third, "select 1 from pg_stat_replication where state = 'streaming' and application_name = %s", [old]
        ),
        seconds=90,
    )
    lab.stop_patroni(third)
    assert scene.wait_failover(third) == old
    lab.sql(old, "insert into orders values (7002, 'on the third timeline', 1)")
    used = {f"{scene.timeline + number:08X}.history" for number in (1, 2)}
    wait_for("two used numbers", lambda: used <= set(history_files(lab.nodes[old])))
    texts = history_files(lab.nodes[old])

    scene.rollback()

    picture = verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)
    assert picture.members[held].timeline == scene.timeline + 3, "the new timeline's number was in use"
    for name in lab.names:
        here = history_files(lab.nodes[name])
        assert {key: text for key, text in here.items() if key in used} == {
            key: texts[key] for key in used if key in here
        }, f"{name} has another history of a used timeline"


def test_a_member_that_has_joined_since_the_checkpoint_is_not_left_running(scene: Scene) -> None:
    """H5: the journal does not know it, so nothing would stop it, and it would lead with the discarded data."""
    lab = scene.lab
    scene.checkpoint()
    third = scene.third
    scene.deploy_badly()
    texts = {name: scene.journal_path(name).read_text() for name in lab.names}
    for name, text in texts.items():
        record = json.loads(text)
        del record["members"][third]
        scene.journal_path(name).write_text(json.dumps(record))
    before = look(lab)
    sentence = scene.refused("rollback", **scene.rollback_conf())
    assert f"{third} joined the cluster after checkpoint {scene.record['id']}" in sentence, sentence
    unchanged(lab, before)
    for name, text in texts.items():
        scene.journal_path(name).write_text(text)
    scene.rollback()
    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)


def test_a_held_standby_that_crashed_is_recovered_along_the_marks_timeline(scene: Scene) -> None:
    """Its last restartpoint may lie on an earlier timeline than the mark: that is no timeline to recover on."""
    lab = scene.lab
    scene.checkpoint()
    scene.deploy_badly()
    scene.kill(scene.held)
    control = lab.ssh(scene.held, f"{lab.info['bin_dir']}/pg_controldata {lab.nodes[scene.held].data_dir}").stdout
    (timeline,) = re.findall(r"Latest checkpoint's TimeLineID: +(\d+)", control)
    assert int(timeline) < scene.timeline, "the restartpoint is on the mark's timeline: this test shows nothing"

    scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
