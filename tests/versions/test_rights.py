"""On this version too the role needs each right of its grants.sql, and nothing else for the whole procedure."""

from __future__ import annotations

from tests.cluster.rights import ROLE, has_these_and_no_other, is_refused_without, rights
from tests.cluster.scene import Scene
from tests.versions.verdict import verdict


def test_without_one_of_the_rights_no_checkpoint_is_taken(clean: Scene) -> None:
    for right in rights(clean.lab):
        is_refused_without(clean, right)


def test_the_whole_procedure_runs_with_these_rights_alone(scene: Scene) -> None:
    lab = scene.lab
    # what it is a member of for the lab's deployments
    lab.sql(scene.leader, f"revoke release from {ROLE}")
    has_these_and_no_other(lab)

    scene.checkpoint()
    scene.must("resume")
    scene.checkpoint()
    scene.deploy_badly()
    scene.rollback()

    verdict(lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    has_these_and_no_other(lab)
