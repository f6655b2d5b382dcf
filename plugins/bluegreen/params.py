"""The DAGs' params, as the trigger form shows them; what a value means is checked again when a run starts.

Only what decides stands without a section: the form folds the rest.
"""

from __future__ import annotations

from airflow.sdk import Param

from bluegreen.clusters import load_registry
from bluegreen.exceptions import RegistryError


def cluster_names() -> list[str]:
    """Return the registry's usable clusters; with a broken registry none, and the run itself says why."""
    try:
        return sorted(load_registry().clusters)
    except RegistryError:
        return []


def cluster() -> Param:
    """Return the param that names a cluster, with the registry's names as suggestions."""
    return Param(
        type="string",
        minLength=1,
        title="Cluster",
        description="Its name in the registry (include/clusters.yaml).",
        examples=cluster_names(),
    )


def label() -> Param:
    """Return the param for a checkpoint's label."""
    return Param(
        "",
        type="string",
        title="Label",
        description="For people, e.g. the release: at most 200 printable characters. `patronictl list` shows it.",
    )


def checkpoint(*, required: bool) -> Param:
    """Return the param that names the held checkpoint."""
    text = "The id that is held, as the checkpoint's report and `patronictl list` show it."
    if required:
        return Param(type="string", title="Checkpoint", description=text, minLength=1)
    return Param(None, type=["null", "string"], title="Checkpoint", description=text + " Empty: whichever is held.")


def break_lock() -> Param:
    """Return the param that names a dead run, whose lock goes."""
    return optional_text("Break lock", "The run whose lock is broken, when that run is dead.")


def optional_text(title: str, description: str) -> Param:
    """Return a folded param that may stay empty."""
    return Param(None, type=["null", "string"], title=title, description=description, section="More")
