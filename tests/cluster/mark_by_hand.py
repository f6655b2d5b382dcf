"""python mark_by_hand.py CLUSTER STANDBY RUN: hold and mark, with a hold that is without effect at the first mark.

Runs the project's operators outside a DAG. While the first mark is taken, an entry in postgresql.auto.conf
overrides the hold, as an ALTER SYSTEM would: the standby reports the tags, and replays all the same.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from lab.cluster import Lab

from bluegreen.checkpoint import Checkpoint
from bluegreen.hooks.cluster import ClusterHook
from bluegreen.operators.base import lock_cluster, owner_of
from bluegreen.operators.hold import HoldStandbyOperator, RecordCheckpointOperator
from bluegreen.operators.mark import MarkCheckpointOperator

OVERRIDE = "recovery_min_apply_delay = '0'\n"


class FirstMarkTooEarly(MarkCheckpointOperator):
    """The operator, with a standby that replays until the first mark has been applied."""

    lab: Lab
    xids: list[int]

    def _mark(self, hook: ClusterHook, checkpoint: Checkpoint, topology: Any) -> Checkpoint:
        first = not self.xids
        marked = super()._mark(hook, checkpoint, topology)
        assert marked.xid
        self.xids.append(marked.xid)
        if first:
            wait(lambda: applied(self.lab, marked.held, marked.xid or 0))
            override(self.lab, marked.held, on=False)
        return marked


def applied(lab: Lab, standby: str, xid: int) -> bool:
    """Whether the standby shows this transaction as committed."""
    query = "select %s < txid_snapshot_xmax(txid_current_snapshot()) and txid_status(%s) = 'committed'"
    with lab.connect(standby, "app") as connection:
        ahead = connection.execute("select txid_snapshot_xmax(txid_current_snapshot())").fetchone()
        if not ahead or xid >= ahead[0]:
            return False
        row = connection.execute(query, (xid, xid)).fetchone()
        return bool(row and row[0])


def override(lab: Lab, standby: str, *, on: bool) -> None:
    """Put the override into postgresql.auto.conf, or take it out, and wait until it is in effect."""
    path = lab.nodes[standby].data_dir / "postgresql.auto.conf"
    text = path.read_text().replace(OVERRIDE, "")
    path.write_text(text + OVERRIDE if on else text)
    lab.sql(standby, "select pg_reload_conf()")
    wait(lambda: lab.value(standby, "show recovery_min_apply_delay") == ("0" if on else "20d"))


def wait(look: Any, seconds: float = 30) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def main() -> None:
    """Hold, mark twice, record; print what came of it."""
    cluster, standby, run = sys.argv[1:]
    lab = Lab.load(run)
    now = datetime.now(UTC)
    dag_run = SimpleNamespace(
        dag_id="by_hand", run_id="by_hand", start_date=now, run_after=now, run_type="manual", triggering_user_name=""
    )
    context: Any = {"dag_run": dag_run}
    with ClusterHook(cluster) as hook:
        survey = hook.survey(patroni_must_answer=True)
        lock_cluster(hook, context, "checkpoint", survey, held=standby, members=survey.states)
        hold = HoldStandbyOperator(task_id="hold", cluster=cluster, standby=standby, checkpoint_id="bg_by_hand")
        hold.act(hook, context)
    override(lab, standby, on=True)
    mark = FirstMarkTooEarly(task_id="mark", cluster=cluster)
    mark.lab, mark.xids = lab, []
    with ClusterHook(cluster) as hook:
        marked = mark.act(hook, context)
    with ClusterHook(cluster) as hook:
        recorded = RecordCheckpointOperator(task_id="record", cluster=cluster).act(hook, context)
        hook.unlock(owner_of(context, ""), hook.nodes)
    print(json.dumps({"marks": marked["marks"], "xids": mark.xids, "checkpoint": recorded["checkpoint"]}))


if __name__ == "__main__":
    main()
