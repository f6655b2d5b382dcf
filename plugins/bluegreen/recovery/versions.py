"""What differs between PostgreSQL 9.6 and 18, in one place.

Adding a version means reading this file from the top: every fact names the release notes or the
page of the documentation that it comes from. SQL texts differ in ``include/sql/before_N/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bluegreen.exceptions import RefusedError

OLDEST_SUPPORTED = 90600
NEWEST_SUPPORTED_MAJOR = 18


class HoldMechanism(StrEnum):
    """How replay is kept before the mark."""

    APPLY_DELAY = "recovery_min_apply_delay"
    REPLAY_PAUSE = "replay pause"


@dataclass(frozen=True)
class ServerVersion:
    """A server's version, and what follows from it.

    :param num: ``server_version_num``, e.g. 150018 or 90624.
    """

    num: int

    def __post_init__(self) -> None:
        if not OLDEST_SUPPORTED <= self.num < (NEWEST_SUPPORTED_MAJOR + 1) * 10000:
            raise RefusedError(
                f"found PostgreSQL {self.num}, expected 9.6 to {NEWEST_SUPPORTED_MAJOR}; "
                "what differs in another version is listed in plugins/bluegreen/recovery/versions.py"
            )

    @property
    def major(self) -> float:
        """Major version: 9.6, 10, 11 and so on."""
        return self.num // 10000 if self.num >= 100000 else float(f"{self.num // 10000}.{self.num // 100 % 100}")

    @property
    def wal_directory(self) -> str:
        """Name of the WAL directory (renamed in 10, release notes E.1)."""
        return "pg_wal" if self.num >= 100000 else "pg_xlog"

    @property
    def waldump(self) -> str:
        """Name of the program that prints WAL (renamed in 10)."""
        return "pg_waldump" if self.num >= 100000 else "pg_xlogdump"

    @property
    def has_recovery_conf(self) -> bool:
        """Recovery settings live in ``recovery.conf`` (merged into the configuration in 12)."""
        return self.num < 120000

    @property
    def hold_mechanism(self) -> HoldMechanism:
        """The apply delay can be changed by a reload from 12 on; before that Patroni leaves a pause alone (H1)."""
        return HoldMechanism.APPLY_DELAY if self.num >= 120000 else HoldMechanism.REPLAY_PAUSE

    @property
    def reports_missing_target(self) -> bool:
        """From 13 on recovery fails when its target is not in the WAL; before, it promotes at the end (H3)."""
        return self.num >= 130000

    @property
    def has_archive_library(self) -> bool:
        """``archive_library`` came with 15."""
        return self.num >= 150000

    @property
    def has_wal_keep_size(self) -> bool:
        """``wal_keep_segments`` became ``wal_keep_size`` in 13."""
        return self.num >= 130000

    @property
    def rewind_needs_superuser(self) -> bool:
        """``pg_rewind`` against a running server needs a superuser before 11 (pg_rewind, Notes)."""
        return self.num < 110000

    @property
    def rewind_recovers_first(self) -> bool:
        """From 13 on ``pg_rewind`` runs crash recovery on its target, unless it is told not to."""
        return self.num >= 130000

    @property
    def rewind_overlooks_standbys(self) -> bool:
        """Before February 2021 ``pg_rewind`` read a standby's WAL only up to its last checkpoint record.

        Pages that it changed later keep what is discarded. Mended in 9.6.21, 10.16, 11.11, 12.6 and 13.2, and in 14
        from the start ("Fix pg_rewind bugs when rewinding a standby server", December 2020).
        """
        fixed = {9.6: 90621, 10: 100016, 11: 110011, 12: 120006, 13: 130002}
        return self.num < fixed.get(self.major, 0)

    @property
    def rewind_skips_version_files(self) -> bool:
        """Before 14 ``pg_rewind`` copies no file of the name PG_VERSION, not even one that its target lacks.

        A database that the target dropped after the mark comes back without it, and nobody can connect
        (``src/bin/pg_rewind/filemap.c``; seen on 11 and 13).
        """
        return self.num < 140000
