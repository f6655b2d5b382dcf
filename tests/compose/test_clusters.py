"""Two clusters under one Airflow: what is done to one leaves the other alone."""

from __future__ import annotations

import psycopg
from lab.compose.files import Place
from lab.compose.stack import ComposeLab, container, docker
from tests.cluster.scene import Scene, has, wait_for
from tests.cluster.verdict import contents, look, verdict

INVOICES = """
create table if not exists invoices (id int primary key, total numeric not null);
truncate invoices;
insert into invoices select i, i * 1.5 from generate_series(1, 500) i;
"""


def test_haproxy_leads_to_the_second_leader_too(clean: Scene) -> None:
    lab = ComposeLab.of("billing")
    lab.wait_healthy(60)
    haproxy = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", container("haproxy"))
    (address,) = (one for one in haproxy.stdout.split() if one.startswith(Place.load().subnet))
    login = {"user": "release", "password": lab.info["users"]["release"], "dbname": "app"}
    with psycopg.connect(host=address, port=5010, connect_timeout=5, **login) as session:
        where = session.execute("select host(inet_server_addr()), pg_is_in_recovery()").fetchone()
    assert where == (lab.nodes[lab.wait_leader()].host, False)


def test_one_cluster_is_rolled_back_while_the_other_holds_its_checkpoint(scene: Scene) -> None:
    lab = ComposeLab.of("billing")
    lab.wait_healthy(60)
    lab.sql(lab.wait_leader(), INVOICES, user="release")
    rows = contents(lab, lab.wait_leader())
    wait_for("the invoices on both members", lambda: all(has(lab, name, rows) for name in lab.names))
    billing = Scene(lab, scene.airflow, look(lab))

    runs = [(one, one.trigger("checkpoint", label="release 1")) for one in (scene, billing)]
    for one, run_id in runs:
        report = one.finish("checkpoint", run_id)
        assert report["result"] == "held"
        one.record = report["checkpoint"]
    deployed = scene.deploy_badly()
    billing.deploy("update invoices set total = 0")

    before = look(scene.lab)
    billing.rollback()
    verdict(lab, before=billing.fresh, rows=rows, leader=billing.held, after_xid=billing.xid)
    after = look(scene.lab)
    assert (after.leader, after.config) == (before.leader, before.config)
    assert scene.journal()["phase"] == "held"
    assert contents(scene.lab, str(after.leader)) == deployed
    assert contents(scene.lab, scene.held) == scene.rows

    scene.rollback()
    verdict(scene.lab, before=scene.fresh, rows=scene.rows, leader=scene.held, after_xid=scene.xid)
    assert contents(lab, billing.held) == rows
