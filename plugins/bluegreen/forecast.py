"""When a disk is full, from two looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SHORTEST_SECONDS, LONGEST_SECONDS = 5, 900
"""Between two looks whose difference says how fast a disk fills now."""


@dataclass(frozen=True)
class Disk:
    """One look at a file system.

    :param at: seconds since the epoch, by the node's clock.
    """

    device: str
    size_bytes: int
    free_bytes: int
    at: float

    @property
    def free_percent(self) -> float:
        """Free space in percent; 0 for a file system without a size."""
        return 100 * self.free_bytes / self.size_bytes if self.size_bytes > 0 else 0.0


def seconds_until_full(earlier: Mapping[str, object] | None, now: Disk) -> float | None:
    """Return in how many seconds a file system is full if it goes on filling as it did since an earlier look.

    :param earlier: ``device``, ``free_bytes`` and ``at`` of that look, or None.
    :return: None where it does not fill, or too little is known.
    """
    if not isinstance(earlier, Mapping) or earlier.get("device") != now.device:
        return None
    free, at = earlier.get("free_bytes"), earlier.get("at")
    if not isinstance(free, int | float) or not isinstance(at, int | float):
        return None
    if not SHORTEST_SECONDS <= now.at - at <= LONGEST_SECONDS:
        return None
    filled_per_second = (free - now.free_bytes) / (now.at - at)
    return now.free_bytes / filled_per_second if filled_per_second > 0 else None
