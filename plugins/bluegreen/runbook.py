"""The rollback as a plain shell script, for the night on which Airflow itself is down.

Written beside the journal when a checkpoint is taken, with this cluster's real names, paths and XID. It
does what ``bluegreen_rollback`` does, in the same order, and stops at the first step that does not show
what it must, saying what to do. The steps are in ``include/runbook.sh``, the same for every cluster; only quoted
assignments are added here. Source of the order: docs, "The corrected order".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bluegreen.checkpoint import Checkpoint, MemberAddress, check_label
from bluegreen.exceptions import RefusedError
from bluegreen.recovery import standalone
from bluegreen.recovery.versions import ServerVersion
from bluegreen.shell import HOLD_FILE
from bluegreen.statements import SQL_DIR, statement_path

TEMPLATE = SQL_DIR.parent / "runbook.sh"

_PLACE = re.compile("@([A-Z_]+)@")


@dataclass(frozen=True)
class Place:
    """What the runbook has to know of a member's node.

    :param os_user: owner of the data directory.
    :param status: command whose exit status is 0 while Patroni runs.
    """

    ssh_host: str
    config: str
    data_dir: str
    bin_dir: str
    os_user: str
    start: str
    stop: str
    status: str
    patronictl: str


def runbook(checkpoint: Checkpoint, places: Mapping[str, Place], *, superuser: str) -> str:
    """Return the script.

    :param checkpoint: with its mark taken.
    :param places: every member's node.
    :param superuser: the database superuser of the held member's Patroni configuration.
    :raises RefusedError: without a mark, and for a name, path or command that is not one line of printable text.
    """
    if None in (checkpoint.xid, checkpoint.lsn, checkpoint.restore_point_lsn, checkpoint.timeline):
        raise RefusedError(f"checkpoint {checkpoint.id} has no mark; there is no runbook for it")
    version = ServerVersion(checkpoint.server_version_num)
    signals, settings = _recovery(checkpoint, version)
    replicas = [name for name in checkpoint.others if name != checkpoint.leader]
    leader = [checkpoint.leader] if checkpoint.leader in checkpoint.others else []
    parts = {
        "HEAD": _head(checkpoint),
        "CLUSTER": _cluster_values(checkpoint, places[checkpoint.held], version, settings, superuser),
        "MEMBERS": "".join(
            _member_values(name, place, checkpoint.members[name]) for name, place in sorted(places.items())
        ).rstrip("\n"),
        "EVERYONE": _words(sorted(checkpoint.members)),
        "OTHERS": _words(checkpoint.others),
        "TO_STOP": _words([checkpoint.held, *replicas, *leader]),
        "PROOF": _proof(checkpoint.server_version_num),
        "SETTINGS": "".join(f"{name} = {standalone.quote_setting(value)}\n" for name, value in settings.items()),
        "SIGNALS": signals,
        "HOLD_FILE": HOLD_FILE,
    }
    # In one pass: what a value holds is never taken for a place to fill.
    return _PLACE.sub(lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))


def _recovery(checkpoint: Checkpoint, version: ServerVersion) -> tuple[str, dict[str, str]]:
    """Return the lines that write the signal file, and the settings for ``postgresql.auto.conf``."""
    assert checkpoint.xid is not None
    assert checkpoint.timeline is not None
    settings = standalone.recovery_settings(
        xid=checkpoint.xid, timeline=checkpoint.timeline, version=version, restore_command=""
    )
    if not version.has_recovery_conf:
        return '  rm -f -- "$data/standby.signal"; : > "$data/recovery.signal"', settings
    text = standalone.recovery_conf(settings)
    return f"  cat > \"$data/recovery.conf\" <<'CONF'\n{text}CONF", standalone.alone_until_proven(version)


def _proof(server_version_num: int) -> str:
    text = statement_path("proof", server_version_num).read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if not line.startswith("--"))


def _head(checkpoint: Checkpoint) -> str:
    lines = (
        f"Roll cluster {checkpoint.cluster} back to checkpoint {checkpoint.id} without Airflow.",
        "",
        f"  label      {check_label(checkpoint.label) or 'none'}",
        f"  taken at   {checkpoint.taken_at} on leader {checkpoint.leader}; the held standby is {checkpoint.held}",
        f"  the state  right after transaction {checkpoint.xid}, at {checkpoint.lsn} on timeline {checkpoint.timeline}",
    )
    return "\n".join(f"# {_line(line)}".rstrip() for line in lines)


def _cluster_values(
    checkpoint: Checkpoint, held: Place, version: ServerVersion, settings: Mapping[str, str], superuser: str
) -> str:
    assert checkpoint.xid is not None
    hba, ident = standalone.closed_hba(superuser, held.os_user)
    files = checkpoint.server_files
    return _assignments(
        cluster=checkpoint.cluster,
        scope=checkpoint.scope,
        id=checkpoint.id,
        held=checkpoint.held,
        xid=str(checkpoint.xid),
        xid32=str(checkpoint.xid & 0xFFFFFFFF),
        restore_lsn=str(checkpoint.restore_point_lsn),
        lsn=str(checkpoint.lsn),
        timeline=str(checkpoint.timeline),
        system_identifier=checkpoint.system_identifier,
        superuser=superuser,
        socket=files.get("unix_socket_directories", "").split(",")[0].strip().strip('"'),
        port=files.get("port", ""),
        hba_file=files.get("hba_file", ""),
        ident_file=files.get("ident_file", ""),
        closed_hba=hba.splitlines()[-1],
        closed_ident=ident.splitlines()[-1],
        setting_names="|".join(settings),
        wal_name=version.wal_directory,
        waldump=version.waldump,
        rewind_overlooks="yes" if version.rewind_overlooks_standbys else "",
    )


def _member_values(name: str, place: Place, address: MemberAddress) -> str:
    user = _quoted(place.os_user)
    values = _assignments(
        member=name,
        host=place.ssh_host,
        pg_host=address.host,
        pg_port=str(address.port),
        owner_shell=f'if [ "$(id -un)" = {user} ]; then exec /bin/sh -s; else exec sudo -n -u {user} /bin/sh -s; fi',
        config=place.config,
        data=place.data_dir,
        bin=place.bin_dir,
        patronictl=place.patronictl,
        start=place.start,
        stop=place.stop,
        status=place.status,
    )
    return f"  {_quoted(name)}) cat <<'VALUES'\n{values}\nVALUES\n  ;;\n"


def _assignments(**values: str) -> str:
    return "\n".join(f"{name}={_quoted(value)}" for name, value in values.items())


def _words(names: Iterable[str]) -> str:
    return " ".join(_quoted(name) for name in names)


def _quoted(value: str) -> str:
    """Return a value quoted for a shell, always: ``shlex.quote`` leaves a word bare that a shell may reserve."""
    return "'" + _line(value).replace("'", "'\"'\"'") + "'"


def _line(value: str) -> str:
    """Return a value that is one line of printable text, so that it ends neither a comment nor a here-document.

    :raises RefusedError: otherwise.
    """
    if not value.isprintable():
        raise RefusedError(
            f"found {value[:80]!r}; a runbook cannot be written with such a name, path or command: expected one line "
            "of printable text"
        )
    return value
