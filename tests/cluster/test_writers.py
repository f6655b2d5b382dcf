"""Clients that never stop writing: what was acknowledged when, and what is there in the end (hazard H12)."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from lab.cluster import Lab
from tests.cluster.scene import Scene, has, wait_for
from tests.cluster.verdict import contents, verdict

LEDGER = """
create table ledger (id uuid primary key, writer text not null, n int not null, xid bigint not null);
"""
INSERT = "insert into ledger values (%s, %s, %s, txid_current()) returning xid, host(inet_server_addr())"


@dataclass
class Write:
    """One transaction as its client saw it; times by the machine's clock, which all share."""

    id: str
    begun: float
    acknowledged: float | None = None
    host: str = ""
    xid: int = 0


@dataclass
class Writer:
    """A client that inserts in a tight loop, and remembers what it was told.

    :param hosts: where it tries; with several, wherever a server takes writes.
    """

    lab: Lab
    name: str
    hosts: list[str]
    stop: threading.Event
    writes: list[Write] = field(default_factory=list)

    def run(self) -> None:
        """Write until it is told to stop; whatever fails is tried again on a new connection."""
        connection: psycopg.Connection | None = None
        number = 0
        while not self.stop.is_set():
            try:
                connection = connection or self._connect()
                number += 1
                write = Write(str(uuid.uuid4()), time.time())
                self.writes.append(write)
                row = connection.execute(INSERT, (write.id, self.name, number)).fetchone()
                assert row
                write.xid, write.host = row
                write.acknowledged = time.time()
                time.sleep(0.005)
            except psycopg.Error:
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.02)
        if connection is not None:
            connection.close()

    def _connect(self) -> psycopg.Connection:
        member = next(iter(self.lab.nodes.values()))
        options: dict[str, Any] = self.lab.libpq
        return psycopg.connect(
            host=",".join(self.hosts),
            port=member.port,
            dbname="app",
            user="release",
            password=self.lab.info["users"]["release"],
            connect_timeout=2,
            autocommit=True,
            target_session_attrs="read-write" if len(self.hosts) > 1 else "any",
            options="-c statement_timeout=5000",
            **options,
        )


def test_exactly_what_was_acknowledged_before_the_mark_survives(scene: Scene) -> None:
    lab = scene.lab
    lab.sql(scene.leader, LEDGER, user="release")
    rows = contents(lab, scene.leader)
    wait_for("the ledger on every member", lambda: all(has(lab, name, rows) for name in lab.names))
    stop = threading.Event()
    everywhere = [node.host for node in lab.nodes.values()]
    writers = [Writer(lab, f"writer {number}", everywhere, stop) for number in range(4)]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    try:
        for thread in threads:
            thread.start()
        time.sleep(2)
        scene.checkpoint()
        proven = time.time()
        held = scene.held
        # a client that knows the held member's own address and tries to write there all the time
        intruder = Writer(lab, "intruder", [lab.nodes[held].host], stop)
        threads.append(threading.Thread(target=intruder.run))
        threads[-1].start()
        scene.deploy_badly()
        time.sleep(2)

        run_id = scene.trigger("rollback", **scene.rollback_conf())
        scene.finish("rollback", run_id)
        time.sleep(2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    tasks = {task["task_id"]: task for task in scene.airflow.tasks("bluegreen_rollback", run_id)}
    # the last one before the server may be opened: it proves that no Patroni runs
    alone = datetime.fromisoformat(tasks["remove_cluster"]["end_date"]).timestamp()
    marked = datetime.fromisoformat(scene.record["taken_at"]).timestamp()
    writes = [write for writer in (*writers, intruder) for write in writer.writes]
    there = {str(key): xid for key, xid in lab.sql(held, "select id, xid from ledger")}
    host = lab.nodes[held].host
    before = [write for write in writes if write.acknowledged and write.acknowledged < marked]
    during = [write for write in writes if write.begun > proven and write.acknowledged and write.host != host]
    after = [write for write in writes if write.acknowledged and write.host == host]
    never = [write for write in writes if write.begun > proven and not write.acknowledged and write.begun < alone]
    assert min(len(before), len(during), len(after), len(intruder.writes)) > 20, (len(before), len(during), len(after))

    early = [write for write in after if write.acknowledged and write.acknowledged < alone]
    assert early == [], f"{len(early)} writes on the held member were acknowledged before it was proven to be alone"
    lost = [write for write in before if write.id not in there]
    assert lost == [], f"{len(lost)} of {len(before)} transactions acknowledged before the mark are gone"
    left = [write for write in during if write.id in there]
    assert left == [], f"{len(left)} of {len(during)} transactions begun after the mark are still there"
    assert [write for write in never if write.id in there] == [], "transactions that failed after the mark are there"
    gone = [write for write in after if write.id not in there]
    assert gone == [], f"{len(gone)} of {len(after)} transactions acknowledged by the new leader are gone"
    assert not [write for write in before if write.xid > scene.xid and write.xid != there[write.id]]

    rows = contents(lab, held)
    assert {key: text for key, text in rows.items() if "ledger" not in key} == scene.rows
    verdict(lab, before=scene.fresh, rows=rows, leader=held, after_xid=scene.xid)
