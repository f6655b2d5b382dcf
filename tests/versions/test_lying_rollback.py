"""A rollback or a resume that is lied to ends in the state before it or after it, says which, and the truth ends it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster.scene import LOCK, Scene, has, wait_for
from tests.cluster.verdict import look, unchanged, verdict
from tests.faults.judge import Expectation, settle, wrongs
from tests.versions.liars import (
    HttpLie,
    Output,
    costly,
    failed_clearly,
    is_a_sentence,
    lying_node,
    lying_patronis,
    of_cluster,
)
from tests.versions.lies import ANSWERS, ELSEWHERE, LIES, OUTPUTS, for_ever, half, much, said

HELD, THIRD = "n2", "n3"
RUN_SECONDS = 600
TAMPERED = b"rmgr: Transaction len (rec/tot): 34/34, tx: 1, lsn: 0/1, prev 0/0, desc: COMMIT $(touch /tmp/x)\n"
"""The form in which pg_waldump prints a commit, of another transaction."""


def ready(scene: Scene) -> Expectation:
    """A checkpoint, and a deployment after it that must go."""
    scene.checkpoint(standby=HELD)
    deployed = scene.deploy_badly()
    wait_for("the deployment on the third", lambda: has(scene.lab, THIRD, deployed))
    return Expectation(scene, "rollback", deployed)


PATRONI: dict[str, HttpLie] = {
    **{kind: ANSWERS[kind][0] for kind in ("huge", "slow body", "compressed bomb", "deep nesting")},
    **{kind: of_cluster(LIES[kind][0]) for kind in ("a hostile name", "hosts swapped", "another leader")},
}


@pytest.mark.parametrize("dag", ["resume", "rollback"])
def test_an_output_of_the_held_node_that_is_no_answer(scene: Scene, run_folder: Path, dag: str) -> None:
    ready(scene)
    before = look(scene.lab)
    for kind in ("huge", "cut off", "not UTF-8", "a profile that prints", "many lines"):
        word, lie, words = OUTPUTS[kind]
        with lying_node(scene.lab, run_folder, HELD, {word: lie}):
            failed_clearly(costly(scene, dag, **scene.conf(dag)), words)
        # a node that does not answer cannot give the lock back; the next run removes that of a run that has ended
        path = scene.lab.nodes[HELD].patroni_config
        path.with_name(path.name + LOCK).unlink(missing_ok=True)
        unchanged(scene.lab, before)
    scene.must(dag, **scene.conf(dag))


# where no Patroni can be understood a rollback goes on without one, as it must, and waits three times for the leader
@pytest.mark.parametrize("kind", ["huge", "hosts swapped", "another leader"])
def test_a_rollback_behind_lying_patronis(scene: Scene, run_folder: Path, kind: str) -> None:
    expected = ready(scene)
    with lying_patronis(scene.lab, run_folder, {"GET /cluster": PATRONI[kind]}):
        cost = costly(scene, "rollback", **scene.rollback_conf())
    ends_well(scene, expected, cost.state, cost.report)
    assert cost.seconds < RUN_SECONDS, cost


# a standby that is called the leader shows no connection: for a resume replication is broken, and it waits its hour
@pytest.mark.parametrize("kind", sorted(set(PATRONI) - {"another leader"}))
def test_a_resume_behind_lying_patronis(scene: Scene, run_folder: Path, kind: str) -> None:
    scene.checkpoint(standby=HELD)
    expected = Expectation(scene, "resume", scene.deploy_badly())
    with lying_patronis(scene.lab, run_folder, {"GET /cluster": PATRONI[kind]}):
        cost = costly(scene, "resume", checkpoint=scene.record["id"])
    assert cost.seconds < RUN_SECONDS, cost
    ends_well(scene, expected, cost.state, cost.report)


@pytest.mark.parametrize(
    ("operation", "request_", "kind"),
    [(operation, asked, kind) for operation, lies in ELSEWHERE.items() for asked in lies for kind in lies[asked]],
)
def test_a_lie_about_a_member_or_the_configuration(
    scene: Scene, run_folder: Path, operation: str, request_: str, kind: str
) -> None:
    # Honest at first and in the end: a rollback asks the addresses that its checkpoint has found.
    with lying_patronis(scene.lab, run_folder, {}) as liars:
        if operation == "checkpoint":
            scene.record = {"held": HELD}
            expected = Expectation(scene, operation, {})
        else:
            expected = replace(ready(scene), operation=operation)
        for liar in liars:
            liar.asked.clear()
            liar.lies[request_] = ELSEWHERE[operation][request_][kind]
        cost = costly(scene, operation, **scene.conf(operation))
        told = [liar.url for liar in liars if request_ in liar.asked]
        for liar in liars:
            del liar.lies[request_]
        assert told, "the lie was not told"
        assert cost.seconds < RUN_SECONDS, cost
        ends_well(scene, expected, cost.state, cost.report)


# In the middle: the node has answered well until then.
WALDUMP, START, LOCAL_SQL = "-r Transaction", 'start -D "$data" -w', "ON_ERROR_STOP=1"
REMAINS, REWIND = "show-config", "--target-pgdata"
LIST = '-c "$config" list "$scope"'
MIDWAY: dict[str, tuple[str, str, Output]] = {
    "WAL, huge": (HELD, WALDUMP, much),
    "WAL, not UTF-8": (HELD, WALDUMP, said(b"\xff\xfe\x00\n")),
    "WAL of another transaction": (HELD, WALDUMP, said(TAMPERED)),
    "a start without an end": (HELD, START, for_ever),
    "a start cut off": (HELD, START, half),
    "local SQL, huge": (HELD, LOCAL_SQL, much),
    "local SQL, hostile": (HELD, LOCAL_SQL, said(b"t'; drop table x; --\n\x1b[31m\n")),
    "a list of the DCS": (HELD, LIST, said(b"$(id)\n")),
    "the DCS's remains": (HELD, REMAINS, said(b"members\tJChpZCk=\n")),
    "a rewind, huge": (THIRD, REWIND, much),
    "a rewind, cut off": (THIRD, REWIND, half),
}


@pytest.mark.parametrize("kind", MIDWAY)
def test_an_output_of_a_node_in_the_middle(scene: Scene, run_folder: Path, kind: str) -> None:
    member, word, lie = MIDWAY[kind]
    expected = ready(scene)
    # what remains is asked for where the list does not say that nothing does
    lies = {LIST: said(b"\n"), word: lie} if word == REMAINS else {word: lie}
    with lying_node(scene.lab, run_folder, member, lies) as node:
        cost = costly(scene, "rollback", **scene.rollback_conf())
        assert any(word in script for script in node.scripts), f"the lie was not told: {cost}, {cost.message}"
    ends_well(scene, expected, cost.state, cost.report)


def ends_well(scene: Scene, expected: Expectation, state: str, report: dict[str, object]) -> None:
    """Raise unless the run ended before or after its work and said so, and the same run ends it without the lie."""
    assert is_a_sentence(str(report["message"])), report
    outcome = settle(expected)
    found = list(wrongs(expected, state, report, outcome))
    assert not found, found
    if outcome.state == "after":
        return
    begin = time.monotonic()
    scene.must(expected.operation, **scene.conf(expected.operation))
    after(scene, expected)
    assert time.monotonic() - begin < RUN_SECONDS


def after(scene: Scene, expected: Expectation) -> None:
    """Raise unless the cluster is as it must be after the operation."""
    if expected.operation == "checkpoint":
        verdict(scene.lab, before=scene.fresh, rows=scene.rows, held=HELD)
    elif expected.operation == "rollback":
        verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    else:
        verdict(scene.lab, before=scene.fresh, rows=expected.deployed)
