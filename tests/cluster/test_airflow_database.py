"""An Airflow whose metadata lie on the cluster that it would stop: told before anything has changed."""

from __future__ import annotations

from tests.cluster.scene import Scene, has, wait_for
from tests.cluster.verdict import contents, look, unchanged

TABLES = "create table dag_run (id int); create table task_instance (id int); create table slot_pool (id int)"


def test_a_cluster_that_holds_an_airflows_metadata_is_refused(scene: Scene) -> None:
    lab, leader = scene.lab, scene.leader
    lab.sql(leader, "create database metadata", database="postgres")
    lab.sql(leader, TABLES, database="metadata")
    rows = contents(lab, leader)
    wait_for("all have the tables", lambda: all(has(lab, name, rows) for name in lab.names))
    with lab.connect(leader, "metadata"):
        before = look(lab)
        sentence = scene.refused("checkpoint")
        assert "holds the metadata database of an Airflow (metadata)" in sentence
        assert "Move it" in sentence
        unchanged(lab, before)
    scene.checkpoint()
