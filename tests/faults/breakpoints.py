"""Stops a task of a running Airflow at a chosen point, so that a test can break something just there.

Inside Airflow this module is a plugin, found by the entry point that `Breakpoints.environment` writes; it wraps the
places at which a task touches the world. In a test `Breakpoints` arms a point, waits until a task stands at it, and
lets it go on. A point is used up when a task reaches it: a second try runs through.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VARIABLE = "BLUEGREEN_BREAKPOINTS"
LONGEST_STOP_SECONDS = 120


@dataclass(frozen=True)
class Point:
    """Where a task stops.

    :param dag: the DAG's id.
    :param task: the task's id.
    :param kind: `task` for the task itself, `node` for a command on a node, `rest` for a request to Patroni, `sql`
        for a question of include/sql.
    :param edge: `begin` or `end`.
    :param match: a regular expression that the command, request or question must match.
    """

    dag: str
    task: str
    kind: str
    edge: str
    match: str = ""


class Breakpoints:
    """The side of the test.

    :param folder: empty, and shared with the tasks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environment(self, environment: dict[str, str], checkout: Path) -> dict[str, str]:
        """What Airflow needs in its environment, so that its tasks stop at points."""
        info = self.folder / "site" / "bluegreen_breakpoints-1.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bluegreen-breakpoints\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[airflow.plugins]\nbreakpoints = {__name__}:plugin\n")
        path = os.pathsep.join([str(info.parent), str(checkout), environment.get("PYTHONPATH", "")])
        return {**environment, VARIABLE: str(self.folder), "PYTHONPATH": path.rstrip(os.pathsep)}

    def arm(self, point: Point) -> None:
        """Have the next task that reaches the point stop there."""
        self.clear()
        _write(self.folder / "armed", asdict(point))

    def clear(self) -> None:
        """Forget the point, and let go whoever stands at it."""
        (self.folder / "armed").unlink(missing_ok=True)
        (self.folder / "go").touch()
        (self.folder / "hit").unlink(missing_ok=True)
        time.sleep(0.05)
        (self.folder / "go").unlink(missing_ok=True)

    def reached(self) -> int | None:
        """The process that stands at the point, or None."""
        try:
            return int(json.loads((self.folder / "hit").read_text())["pid"])
        except FileNotFoundError:
            return None

    def go(self) -> None:
        """Let the task go on."""
        (self.folder / "go").touch()


def _write(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(content))
    draft.rename(path)


_current: dict[str, str] = {}


def _reach(kind: str, edge: str, text: str = "") -> None:
    folder = Path(os.environ[VARIABLE])
    try:
        point = Point(**json.loads((folder / "armed").read_text()))
    except FileNotFoundError:
        return
    here = (_current.get("dag"), _current.get("task"), kind, edge)
    if here != (point.dag, point.task, point.kind, point.edge) or not re.search(point.match, text, re.DOTALL):
        return
    try:
        (folder / "armed").rename(folder / "used")
    except FileNotFoundError:
        return
    _write(folder / "hit", {"pid": os.getpid()})
    deadline = time.monotonic() + LONGEST_STOP_SECONDS
    while not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _wrapped(kind: str, function: Callable[..., Any], describe: Callable[..., str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        text = describe(self, *args)
        _reach(kind, "begin", text)
        result = function(self, *args, **kwargs)
        _reach(kind, "end", text)
        return result

    return wrapper


def _wrapped_task(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def execute(self: Any, context: Any) -> Any:
        _current.update(dag=context["ti"].dag_id, task=self.task_id)
        _reach("task", "begin", str(getattr(self, "member", "")))
        result = function(self, context)
        _reach("task", "end", str(getattr(self, "member", "")))
        return result

    return execute


def _install() -> None:
    from bluegreen.hooks.node import NodeHook
    from bluegreen.hooks.patroni import PatroniHook
    from bluegreen.hooks.postgres import MemberSql
    from bluegreen.operators.base import BluegreenOperator

    if hasattr(NodeHook.run, "__wrapped__"):
        return
    kinds: list[tuple[str, type, str, Callable[..., str]]] = [
        ("node", NodeHook, "run", lambda node, script: f"{node.member}\n{script}"),
        ("rest", PatroniHook, "request", lambda _, method, url, *rest: f"{method} {url}"),
        ("sql", MemberSql, "rows", lambda _, question: question),
    ]
    for kind, owner, name, describe in kinds:
        setattr(owner, name, _wrapped(kind, getattr(owner, name), describe))
    # BaseOperator wraps a class's own `execute`, so the wrapper goes around what is there now
    BluegreenOperator.execute = _wrapped_task(BluegreenOperator.execute)  # type: ignore[method-assign]


def __getattr__(name: str) -> Any:
    """`plugin`, made where Airflow asks for it: a test has no Airflow to load plugins into."""
    if name != "plugin":
        raise AttributeError(name)
    from airflow.plugins_manager import AirflowPlugin

    _install()
    return type("BreakpointPlugin", (AirflowPlugin,), {"name": "bluegreen_breakpoints"})
