"""The role of Airflow's connection has exactly the rights of grants.sql, and needs each of them."""

from __future__ import annotations

import pytest
from tests.cluster.rights import RIGHTS, has_these_and_no_other, is_refused_without
from tests.cluster.scene import Scene


def test_the_role_has_these_rights_and_no_other(clean: Scene) -> None:
    # the lab's deployments work on what belongs to the role `release`
    has_these_and_no_other(clean.lab, besides=frozenset({"release"}))


@pytest.mark.parametrize("right", RIGHTS)
def test_without_one_of_them_no_checkpoint_is_taken(clean: Scene, right: str) -> None:
    is_refused_without(clean, right)
