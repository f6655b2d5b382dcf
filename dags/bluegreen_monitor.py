"""### Watch every cluster of the registry, every minute

One mapped task each, so that a cluster that cannot be reached does not blind the others. A task fails beyond a
limit of the registry, with the figure, the limit and the advice.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from bluegreen.operators.monitor import ListClustersOperator, MonitorClusterOperator

with DAG(
    "bluegreen_monitor",
    schedule="* * * * *",
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=5),
    tags=["bluegreen"],
    doc_md=__doc__,
) as dag:
    clusters = ListClustersOperator(task_id="clusters", retries=0)
    look = MonitorClusterOperator.partial(task_id="look", map_index_template="{{ task.cluster }}").expand(
        cluster=clusters.output
    )

    clusters >> look
