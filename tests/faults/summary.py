"""The table of a run of the matrix, and its last line: python -m tests.faults.summary."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

from lab.config import CHECKOUT
from rich.console import Console
from rich.table import Table
from rich.text import Text


def main() -> int:
    """Print; 1 where something was wrong."""
    folder = Path(os.environ.get("LAB_RUN") or CHECKOUT / "lab" / "run")
    found = json.loads((folder / "faults.json").read_text())
    console = Console(highlight=False, width=160)
    table = Table(title="What each fault has led to", title_justify="left")
    for heading in ("case", "verdict", "seconds", "the report said"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="fold")
    for one in found:
        # a sentence may hold what looks like markup
        verdict = Text("WRONG", "red") if one["wrong"] else Text(one["verdict"])
        table.add_row(Text(one["case"]), verdict, f"{one['seconds']:.0f}", Text(one["said"][:300]))
    console.print(table)
    for one in found:
        if one["verdict"] == "person":
            console.print(Text.assemble((one["case"], "bold"), f" needs a person, who is told: {one['said']}"))
        for line in one["wrong"]:
            console.print(f"WRONG {one['case']}: {line}", markup=False)
    counted = Counter("wrong" if one["wrong"] else one["verdict"] for one in found)
    named = " ".join(f"{name}={counted[name]}" for name in ("before", "after", "person", "wrong"))
    print(f"faults: tried={len(found)} {named}")
    return 1 if counted["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
