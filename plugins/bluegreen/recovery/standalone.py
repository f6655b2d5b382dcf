"""The files of a held member while it recovers alone to the mark (hazards H3, H9 and H12).

Source: PostgreSQL documentation, "Recovery Target" and "Setting Parameters via the Configuration File".
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from bluegreen.exceptions import RefusedError
from bluegreen.recovery.versions import ServerVersion

_SETTING = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(?:=|\s)")
_OTHER_TARGETS = ("recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_lsn")


def quote_setting(value: str) -> str:
    """Return a value quoted for ``postgresql.conf``.

    :raises RefusedError: for a value with a line break or a NUL, which the file cannot hold.
    """
    if any(character in value for character in "\n\r\0"):
        raise RefusedError("a configuration value with a line break was found, expected one line")
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def recovery_settings(*, xid: int, timeline: int, version: ServerVersion, restore_command: str) -> dict[str, str]:
    """Return the settings that recover to the mark and promote there, and nothing else.

    :param xid: the mark's transaction id with its epoch; the parameter takes the lower 32 bits.
    :param timeline: the mark's. ``current`` would be that of the last restartpoint, which a standby that crashed
        after a failover has not made on the mark's timeline yet: recovery would end before the mark.
    :param restore_command: the node's own, or empty; the WAL up to the mark is proven to be local.
    """
    settings = {
        "recovery_target_xid": str(xid & 0xFFFFFFFF),
        "recovery_target_inclusive": "true",
        "recovery_target_action": "promote",
        "recovery_target_timeline": str(timeline),
        # A command that the shell cannot run ends the server, where "not in the archive" lets it go on; `eval`, since
        # one may end in a comment.
        "restore_command": f"(eval {shlex.quote(restore_command)}) || exit 1" if restore_command else "/bin/false",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "recovery_min_apply_delay": "0",
        "recovery_end_command": "",
        "archive_cleanup_command": "",
    }
    if version.has_recovery_conf:
        # recovery.conf knows no empty values
        settings = {name: value for name, value in settings.items() if value}
        settings["standby_mode"] = "off"
        return settings
    # In this order: an empty target that the server reads after the XID fails as "multiple recovery targets".
    return dict.fromkeys(_OTHER_TARGETS, "") | settings | alone_until_proven(version)


def alone_until_proven(version: ServerVersion) -> dict[str, str]:
    """Return the settings under which nothing reaches a shared archive, and a crash ends the server (hazard H12).

    A server that crashes between the start of its new timeline and the checkpoint there has no signal file any more.
    Started again as it is, also by its own postmaster, it replays the old timeline past the mark.
    """
    shut = {"archive_command": "", "restart_after_crash": "off"}
    if version.has_archive_library:
        shut["archive_library"] = ""
    return shut


def with_settings(auto_conf: str, settings: Mapping[str, str]) -> str:
    """Return ``postgresql.auto.conf`` with each of the settings exactly once, at its end."""
    kept = []
    for line in auto_conf.splitlines():
        found = _SETTING.match(line)
        if not (found and found[1].lower() in settings):
            kept.append(line)
    added = [f"{name} = {quote_setting(value)}" for name, value in settings.items()]
    return "\n".join([*kept, *added]) + "\n"


def recovery_conf(settings: Mapping[str, str]) -> str:
    """Return a ``recovery.conf`` (before 12)."""
    return "".join(f"{name} = {quote_setting(value)}\n" for name, value in settings.items())


def alone_settings(version: ServerVersion, *, hba_file: str) -> dict[str, str]:
    """Return the settings under which a server replays the WAL that it has, as a standby that nobody feeds or asks.

    It keeps all WAL: ``pg_rewind`` reads it back to the last common checkpoint.

    :param hba_file: one that lets nobody in.
    """
    settings = {
        "hba_file": hba_file,
        "listen_addresses": "",
        "hot_standby": "on",
        "archive_mode": "off",
        "logging_collector": "off",
        "log_destination": "stderr",
    }
    settings |= {"wal_keep_size": "1TB"} if version.has_wal_keep_size else {"wal_keep_segments": "65536"}
    if not version.has_recovery_conf:
        names = ("primary_conninfo", "primary_slot_name", "restore_command", "archive_cleanup_command")
        settings |= dict.fromkeys(names, "") | {"recovery_min_apply_delay": "0", "recovery_target_timeline": "latest"}
    return settings


def closed_hba(superuser: str, os_user: str) -> tuple[str, str]:
    """Return ``pg_hba.conf`` and ``pg_ident.conf`` that let the database's owner in over the socket only.

    :param superuser: the database superuser of Patroni's YAML.
    :param os_user: the operating system's user that owns the data directory.
    """
    role = '"' + superuser.replace('"', '""') + '"'
    if any(character in superuser + os_user for character in "\n\r\0"):
        raise RefusedError("a user name with a line break was found, expected one line")
    hba = f"# closed by bluegreen until the recovery is proven\nlocal all {role} peer map=bluegreen\n"
    return hba, f'bluegreen "{os_user}" {role}\n'


def start_options(postmaster_opts: str) -> list[str]:
    """Return the options with which Patroni last started this server, from ``postmaster.opts``.

    Patroni keeps port, listen addresses and the values that a primary and a standby must share on the
    command line only, so a start without them would be another server.

    :raises RefusedError: when the file has no data directory in it.
    """
    try:
        words = shlex.split(postmaster_opts)
    except ValueError:
        words = []
    if len(words) < 3 or words[1] != "-D":
        raise RefusedError(
            f"found {postmaster_opts[:80]!r} in postmaster.opts, expected the command line of a server "
            "started by Patroni"
        )
    return words[3:]
