"""`rejoin = auto` chooses by what the data directories allow, and says why."""

from __future__ import annotations

from lab.config import Settings
from tests.cluster.scene import Scene
from tests.versions.verdict import verdict

NEITHER = "neither data checksums nor wal_log_hints are on"


def expected(settings: Settings) -> tuple[str, str]:
    """How the other members of this lab come back, and why."""
    on = [
        name
        for name, is_on in (("data checksums", settings.checksums), ("wal_log_hints", settings.wal_log_hints))
        if is_on
    ]
    return ("rewind", f"{' and '.join(on)} are on") if on else ("reclone", NEITHER)


def test_auto_chooses_rightly_and_says_why(scene: Scene, settings: Settings) -> None:
    lab = scene.lab
    checkpoint = scene.checkpoint()
    held = scene.held
    others = sorted(set(lab.names) - {held})
    how, why = expected(settings)
    assert any(NEITHER in warning for warning in checkpoint["warnings"]) is (how == "reclone"), checkpoint["warnings"]
    scene.deploy_badly()

    report = scene.rollback(rejoin="auto")

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=held, after_xid=scene.xid)
    for name in others:
        assert report["members"][name]["rejoined_by"] == how, report
        assert report["members"][name]["rejoined_because"] == why, report
        assert f"({why})" in report["parts"][name]
    assert report["reason"] == "a test"


def test_a_rewind_that_is_not_possible_is_refused_before_anything_stops(scene: Scene, settings: Settings) -> None:
    how, why = expected(settings)
    scene.checkpoint()
    new = scene.deploy_badly()
    if how == "rewind":
        assert {
            one["rejoined_by"] for one in scene.rollback(rejoin="rewind")["members"].values() if "rejoined_by" in one
        } == {how}
        return
    sentence = scene.refused("rollback", **scene.rollback_conf(rejoin="rewind"))
    assert why in sentence and "reclone" in sentence, sentence
    verdict(scene.lab, before=scene.fresh, rows=new, held=scene.held)
