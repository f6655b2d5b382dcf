"""python -m lab up | down | status | reset [NAME] | snapshot NAME | clean."""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console
from rich.table import Table

from lab import lifecycle
from lab.cluster import Lab
from lab.config import LabError, Settings, load_settings
from lab.supervisor import Supervisor

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line for the person who waits."""
    console.print(text, markup=False)


def main() -> int:
    """Run one verb; a LabError is a sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m lab", description="A Patroni cluster on this machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start the lab, or repair what is stopped")
    verbs.add_parser("down", help="stop it and keep its data")
    verbs.add_parser("clean", help="stop it and remove its data")
    verbs.add_parser("status", help="show its members")
    verbs.add_parser("snapshot", help="keep the present state under a name").add_argument("name")
    back = verbs.add_parser("reset", help="go back to a kept state")
    back.add_argument("name", nargs="?", default=lifecycle.FRESH)
    arguments = parser.parse_args()
    begin = time.monotonic()
    try:
        settings = load_settings()
        if arguments.verb == "up":
            lifecycle.up(settings, say)
            show(settings)
        elif arguments.verb == "down":
            lifecycle.down(settings, say)
        elif arguments.verb == "clean":
            lifecycle.clean(settings, say)
        elif arguments.verb == "status":
            return show(settings)
        elif arguments.verb == "snapshot":
            with lifecycle.alone(settings):
                lifecycle.snapshot(settings, arguments.name)
            say(f"Kept as {arguments.name}, in {time.monotonic() - begin:.1f} s")
        elif arguments.verb == "reset":
            with lifecycle.alone(settings):
                seconds = lifecycle.reset(settings, arguments.name)
            say(f"Back to {arguments.name}, all members streaming, in {seconds:.1f} s")
    except LabError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"lab: {error}", markup=False)
        return 1
    return 0


def show(settings: Settings) -> int:
    """A table of the members; exit code 0 when all is well, 3 otherwise, as service managers have it."""
    supervisor = Supervisor(settings.supervisor_socket)
    if not (settings.run / "lab.json").exists() or not supervisor.is_up():
        say("The lab does not run: make lab")
        return 3
    lab = Lab.load(settings.run)
    programs = supervisor.programs()
    members = {one["name"]: one for one in lab.cluster()["members"]}
    table = Table(title=f"{lab.name}, PostgreSQL {lab.info['server_version']}", title_justify="left")
    for heading in ("member", "address", "Patroni", "role", "state", "timeline", "lag"):
        table.add_column(heading)
    for name, node in lab.nodes.items():
        one = members.get(name, {})
        cells = [one.get(key, "") for key in ("role", "state", "timeline", "lag")]
        table.add_row(name, f"{node.host}:{node.port}", programs[f"patroni-{name}"].state.lower(), *map(str, cells))
    console.print(table)
    trouble = lab.trouble()
    for sentence in trouble:
        say(sentence)
    return 3 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
