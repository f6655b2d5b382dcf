"""What a node answers is input too: each lie ends in one sentence, in time, within bounds, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab.cluster import Lab
from tests.cluster.scene import Scene
from tests.cluster.verdict import unchanged
from tests.versions.liars import costly, failed_clearly, lying_node, lying_patronis, of_cluster
from tests.versions.lies import ANSWERS, LIES, LISTS, OUTPUTS, for_ever


@pytest.fixture(scope="module", autouse=True)
def warm(airflow: Any, lab: Lab) -> None:
    """What the process imports once is not what a lie costs."""
    airflow.run("bluegreen_checkpoint", {"cluster": "nowhere"})
    airflow.run("bluegreen_checkpoint", {"cluster": lab.name, "standby": "n9"})


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_of_patroni_that_is_broken(clean: Scene, run_folder: Path, kind: str) -> None:
    lie, words = ANSWERS[kind]
    with lying_patronis(clean.lab, run_folder, {"GET /cluster": lie}):
        failed_clearly(costly(clean, "checkpoint"), words)
    unchanged(clean.lab, clean.fresh)


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_of_patroni(clean: Scene, run_folder: Path, kind: str) -> None:
    change, words = LIES[kind]
    with lying_patronis(clean.lab, run_folder, {"GET /cluster": of_cluster(change)}):
        failed_clearly(costly(clean, "checkpoint"), words)
    unchanged(clean.lab, clean.fresh)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_of_a_node(clean: Scene, run_folder: Path, kind: str) -> None:
    word, lie, words = OUTPUTS[kind]
    with lying_node(clean.lab, run_folder, "n2", {word: lie}) as node:
        cost = costly(clean, "checkpoint", standby="n2")
        failed_clearly(cost, words)
        assert any(word in script for script in node.scripts), "the lie was not told"
    unchanged(clean.lab, clean.fresh)


def test_an_output_of_a_node_that_never_ends(clean: Scene, run_folder: Path) -> None:
    with lying_node(clean.lab, run_folder, "n2", {LISTS: for_ever}):
        failed_clearly(costly(clean, "checkpoint", standby="n2"), "did not end within")
    unchanged(clean.lab, clean.fresh)
