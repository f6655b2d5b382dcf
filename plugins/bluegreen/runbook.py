"""The rollback as a plain shell script, for the night on which Airflow itself is down.

Written beside the journal when a checkpoint is taken, with this cluster's real names, paths and XID. It
does what ``bluegreen_rollback`` does, in the same order, and stops at the first step that does not show
what it must, saying what to do. Source of the order: docs, "The corrected order".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote

from bluegreen.checkpoint import Checkpoint, check_label
from bluegreen.exceptions import RefusedError
from bluegreen.recovery import standalone
from bluegreen.recovery.versions import ServerVersion


@dataclass(frozen=True)
class Place:
    """What the runbook has to know of a member's node.

    :param os_user: owner of the data directory.
    """

    ssh_host: str
    config: str
    data_dir: str
    bin_dir: str
    os_user: str
    start: str
    stop: str
    patronictl: str


_PLACE = re.compile("@([A-Z0-9_]+)@")

_HEAD = r"""#!/bin/bash
# Roll cluster @CLUSTER@ back to checkpoint @ID@ without Airflow.
#
#   label      @LABEL@
#   taken at   @TAKEN_AT@ on leader @LEADER@; the held standby is @HELD@
#   the state  right after transaction @XID@, at @LSN@ on timeline @TIMELINE@
#
# EVERYTHING COMMITTED SINCE THEN IS DISCARDED, and the cluster is down for some seconds.
#
# Run it where ssh reaches every member:   bash THIS_FILE
# (SSH="ssh -p 22 -l USER" before it, if plain ssh does not do.) It asks once, then stops at the first
# step that does not show what it must, and says what to do. Steps that are done already are found done,
# so after mending something it can be run again from the top.
set -euo pipefail
SSH=${SSH:-ssh}

say()  { printf '\n== %s\n' "$*"; }
stop() { printf '\nSTOPPED: %s\n' "$*" >&2; exit 1; }
# on MEMBER: run the script on standard input on its node, as the owner of the data directory
on() {
  case $1 in
@HOSTS@
  *) stop "no member $1";;
  esac
  if [ "${2:-owner}" = login ]; then $SSH "$host" /bin/sh -s
  else $SSH "$host" "if [ \"\$(id -un)\" = $owner ]; then exec /bin/sh -s; else exec sudo -n -u $owner /bin/sh -s; fi"; fi
}

say "Cluster @CLUSTER@ goes back to transaction @XID@. Type its name to go on:"
if [ "${CONFIRM:-}" != @CLUSTER_Q@ ]; then read -r CONFIRM; fi
[ "$CONFIRM" = @CLUSTER_Q@ ] || stop "not confirmed; nothing was changed"

say "0. Every node answers, and @HELD@ still stands before the mark"
for member in @MEMBERS@; do
  echo 'echo ok' | on "$member" | grep -qx ok || stop "$member does not answer over ssh. If its host is certainly dead and \
cannot come back by itself, take its name out of every list in this file. Nothing was changed"
done
on @HELD_Q@ <<'STEP' || stop "no WAL up to the mark on @HELD@, or its commit is not in it: the checkpoint is lost. Nothing was changed"
"@BIN@/@WALDUMP@" -p "@DATA@/@WAL@" -t @TIMELINE@ -r Transaction -s @RESTORE_LSN@ -e @LSN@ 2>/dev/null | \
  grep -E 'tx: +@XID32@,.*desc: COMMIT'
STEP
"""

_STOP = r"""
say "1. Stop @WHO@ for good: Patroni's configuration aside, then the service, then nothing may run"
on @MEMBER@ <<'STEP'
if [ -e "@CONFIG@" ]; then mv -- "@CONFIG@" "@CONFIG@.bluegreen-aside"; fi
STEP
echo '@STOP@ </dev/null || true' | on @MEMBER@ login
on @MEMBER@ <<'STEP' || stop "PostgreSQL still runs on @WHO@. Stop it: @BIN@/pg_ctl stop -D @DATA@ -m fast (where that takes too long, on any but @HELD@: -m immediate); then run this again. To go back to the old cluster instead, move every *.bluegreen-aside back and start Patroni, the leader first"
for try in 1 2 3 4 5 6 7 8 9 10; do
  if ! "@BIN@/pg_ctl" status -D "@DATA@" >/dev/null; then
    "@BIN@/pg_controldata" "@DATA@" | grep 'cluster state'; exit 0
  fi
  "@BIN@/pg_ctl" stop -D "@DATA@" -m fast -t 5 >/dev/null || true
done
exit 1
STEP
"""

_HISTORY = r"""
on @MEMBER@ <<'STEP' | on @HELD_Q@
cd "@OTHER_DATA@/@WAL@"
for file in *.history; do
  if [ -f "$file" ]; then printf 'test -e "%s" || cat > "%s" <<"END"\n' "@DATA@/@WAL@/$file" "@DATA@/@WAL@/$file"
    cat "$file"; echo END; fi
done
STEP
"""

_RECOVER = r"""
say "2. Timeline histories of the others to @HELD@, so that recovery takes a number nobody has used"
@HISTORIES@
say "3. Recover @HELD@ alone to the mark; it must say: after transaction @XID32@"
on @HELD_Q@ <<'STEP' || stop "@HELD@ was not promoted at the mark. Its log is @CONFIG@.bluegreen-log. NOTHING IS LOST: to go back to the old cluster put the files of @CONFIG@.bluegreen-saved back where they were (standby.signal too), remove @DATA@/recovery.signal, move every *.bluegreen-aside back, start Patroni on @LEADER@ first"
set -eu
proven() { tail -qn 1 "@DATA@/@WAL@"/*.history 2>/dev/null | grep -P '^@TIMELINE@\t\S+\tafter transaction @XID32@$'; }
saved="@CONFIG@.bluegreen-saved"
if ! proven; then
  if [ ! -d "$saved" ]; then
    mkdir -m 0700 "$saved.new"
    cp -p "@HBA@" "$saved.new/pg_hba.conf"; cp -p "@IDENT@" "$saved.new/pg_ident.conf"
    cp -p "@DATA@/postgresql.auto.conf" "$saved.new/"
    for file in standby.signal recovery.conf; do
      if [ -e "@DATA@/$file" ]; then cp -p "@DATA@/$file" "$saved.new/"; fi
    done
    mv "$saved.new" "$saved"
  fi
  cat > "@HBA@" <<'END'
@CLOSED_HBA@END
  cat > "@IDENT@" <<'END'
@CLOSED_IDENT@END
  grep -vE '^ *(@SETTING_NAMES@) *=' "$saved/postgresql.auto.conf" > "@DATA@/postgresql.auto.conf" || true
  cat >> "@DATA@/postgresql.auto.conf" <<'END'
@AUTO_CONF@END
@SIGNALS@
  options=$(cut -d ' ' -f 4- < "@DATA@/postmaster.opts")
  "@BIN@/pg_ctl" start -D "@DATA@" -w -t 60 -l "@CONFIG@.bluegreen-log" -o "$options" </dev/null >/dev/null || true
  for try in $(seq 600); do
    state=$("@BIN@/psql" -XAtq -h "@SOCKET@" -p "@PORT@" -U "@SUPERUSER@" -d postgres -c 'select pg_is_in_recovery()' 2>/dev/null || true)
    [ "$state" != f ] || break
    "@BIN@/pg_ctl" status -D "@DATA@" >/dev/null || exit 1
    sleep 0.2
  done
  proven
fi
STEP
say "THE POINT OF NO RETURN IS PASSED: from here there is only forward"

say "4. Remove the cluster from the DCS; afterwards it must be (uninitialized), or without members and configuration"
on @HELD_Q@ <<'STEP' || stop "the DCS still holds @SCOPE@. Is etcd up, is a Patroni still running somewhere? Then run this again"
config="@CONFIG@.bluegreen-aside"
if [ -e "$config" ]; then
  "@PATRONICTL@" -c "$config" remove "@SCOPE@" <<'END' >/dev/null || true
@SCOPE@
Yes I am aware
END
  # the table of Patroni 3.0 does not say so: there nobody may be a member, and no configuration may be left
  if ! "@PATRONICTL@" -c "$config" list "@SCOPE@" | grep -F '(uninitialized)'; then
    members=$("@PATRONICTL@" -c "$config" list -f json "@SCOPE@") || exit 1
    left=$("@PATRONICTL@" -c "$config" show-config "@SCOPE@" 2>&1 | tail -n 1)
    echo "members: $members, configuration: $left"
    [ "$members" = '[]' ] || exit 1
    case $left in ''|null|'{}'|*"'NoneType' object has no attribute 'data'") ;; *) exit 1 ;; esac
  fi
fi
STEP

say "5. Open @HELD@ to clients and start Patroni on it, without the hold; it must become the leader"
on @HELD_Q@ <<'STEP' || stop "@HELD@ was not opened to clients, or Patroni's configuration did not come back; \
mend what the line above says, then run this again"
set -eu
if [ -e "@CONFIG@.bluegreen-aside" ]; then
  saved="@CONFIG@.bluegreen-saved"
  cp -p "$saved/pg_hba.conf" "@HBA@"; cp -p "$saved/pg_ident.conf" "@IDENT@"
  cp -p "$saved/postgresql.auto.conf" "@DATA@/postgresql.auto.conf"
  if "@BIN@/pg_ctl" status -D "@DATA@" >/dev/null; then "@BIN@/pg_ctl" reload -D "@DATA@" >/dev/null; fi
  if [ -e "@CONFIG@.bluegreen-original" ]; then cp -p "@CONFIG@.bluegreen-original" "@CONFIG@.bluegreen-aside"; fi
  rm -f "@CONFIG@.bluegreen-aside/zz_bluegreen.yml" 2>/dev/null || true
  mv "@CONFIG@.bluegreen-aside" "@CONFIG@"
fi
STEP
echo '@START@ </dev/null' | on @HELD_Q@ login
for try in $(seq 60); do
  role=$(echo '"@PATRONICTL@" -c "@CONFIG@" list "@SCOPE@"' | on @HELD_Q@ | grep -F '| @HELD@ ' | grep -F Leader || true)
  [ -z "$role" ] || break
  sleep 1
done
[ -n "$role" ] || stop "@HELD@ is not the leader after 60 s. If another member leads, it holds the discarded data: stop \
Patroni there, move its configuration aside, and run this again. Else read Patroni's log on @HELD@"
echo "$role"
"""

_REJOIN = r"""
say "6. @WHO@ comes back; it must stream. If it does not within 60 s it is cloned afresh"
on @MEMBER@ <<'STEP'
if [ ! -e "@CONFIG@" ]; then mv "@CONFIG@.bluegreen-aside" "@CONFIG@"; fi
STEP
echo '@START@ </dev/null' | on @MEMBER@ login
streams() {
  leader=$(echo '"@PATRONICTL@" -c "@HELD_CONFIG@" list "@SCOPE@"' | on @HELD_Q@)
  timeline=$(printf '%s\n' "$leader" | grep -F Leader | awk -F'|' '{print $6}' | tr -d ' ')
  printf '%s\n' "$leader" | grep -F '| @WHO@ ' | grep -E 'streaming|running' | awk -F'|' '{print $6}' | tr -d ' ' | \
    grep -qx "$timeline"
}
for try in $(seq 30); do if streams; then break; fi; sleep 2; done
if ! streams; then
  echo '"@PATRONICTL@" -c "@HELD_CONFIG@" reinit "@SCOPE@" @MEMBER@ --force' | on @HELD_Q@ || \
    stop "@WHO@ does not stream and cannot be cloned by patronictl reinit. The cluster serves the old state from @HELD@; \
look at Patroni's log on @WHO@"
  for try in $(seq 300); do if streams; then break; fi; sleep 2; done
  streams || stop "@WHO@ is still being cloned, or failed. The cluster serves the old state from @HELD@; watch patronictl list"
fi
"""

_END = r"""
say "7. Every member has the same history; then what the checkpoint left is removed"
for member in @MEMBERS@; do
  case $member in
@DATA_DIRS@
  esac
  echo "tail -qn 1 '$data/@WAL@'/*.history | grep -P '^@TIMELINE@\t\S+\tafter transaction @XID32@\$'" | on "$member" || \
    stop "$member does not have the line: re-clone it (patronictl reinit). Do not let it be promoted"
done
for member in @MEMBERS@; do
  case $member in
@CONFIGS@
  esac
  printf 'rm -rf -- "%s".bluegreen-*\n' "$config" | on "$member"
done
say "Done: @HELD@ leads with the state right after transaction @XID@. Take a backup now, and look at the WAL archive."
"""


def runbook(checkpoint: Checkpoint, places: Mapping[str, Place], *, superuser: str) -> str:
    """Return the script.

    :param checkpoint: with its mark taken.
    :param places: every member's node.
    :param superuser: the database superuser of the held member's Patroni configuration.
    :raises RefusedError: when a name or path could not stand in a shell script as it is.
    """
    if checkpoint.xid is None or checkpoint.lsn is None or checkpoint.timeline is None:
        raise RefusedError(f"checkpoint {checkpoint.id} has no mark; there is no runbook for it")
    version = ServerVersion(checkpoint.server_version_num)
    held = places[checkpoint.held]
    settings = standalone.recovery_settings(
        xid=checkpoint.xid, timeline=checkpoint.timeline, version=version, restore_command=""
    )
    data_dir = _plain(held.data_dir)
    signals = f'  rm -f "{data_dir}/standby.signal"; : > "{data_dir}/recovery.signal"'
    auto_conf = settings
    if version.has_recovery_conf:
        auto_conf = standalone.archive_shut(version)
        signals = f"  cat > \"{data_dir}/recovery.conf\" <<'END'\n" + standalone.recovery_conf(settings) + "END"
    hba, ident = standalone.closed_hba(superuser, held.os_user)
    files = checkpoint.server_files
    order = [*[name for name in checkpoint.others if name != checkpoint.leader], checkpoint.held]
    order += [checkpoint.leader] if checkpoint.leader in checkpoint.others else []
    common = {
        "SIGNALS": signals,
        "CLOSED_HBA": hba,
        "CLOSED_IDENT": ident,
        "AUTO_CONF": "".join(f"{name} = {standalone.quote_setting(value)}\n" for name, value in auto_conf.items()),
        "SETTING_NAMES": "|".join(auto_conf),
        "CLUSTER": _plain(checkpoint.cluster),
        "CLUSTER_Q": quote(checkpoint.cluster),
        "ID": checkpoint.id,
        "LABEL": check_label(checkpoint.label) or "none",
        "TAKEN_AT": _plain(checkpoint.taken_at),
        "LEADER": _plain(checkpoint.leader),
        "HELD": _plain(checkpoint.held),
        "HELD_Q": quote(checkpoint.held),
        "XID": str(checkpoint.xid),
        "XID32": str(checkpoint.xid & 0xFFFFFFFF),
        "LSN": checkpoint.lsn,
        "RESTORE_LSN": str(checkpoint.restore_point_lsn),
        "TIMELINE": str(checkpoint.timeline),
        "MEMBERS": " ".join(quote(name) for name in sorted(checkpoint.members)),
        "SCOPE": _plain(checkpoint.scope),
        "WAL": version.wal_directory,
        "WALDUMP": version.waldump,
        "HBA": _plain(files.get("hba_file", "")),
        "IDENT": _plain(files.get("ident_file", "")),
        "SOCKET": _plain(files.get("unix_socket_directories", "").split(",")[0].strip()),
        "PORT": _plain(files.get("port", "")),
        "SUPERUSER": _plain(superuser),
        "HELD_CONFIG": _plain(held.config),
        "HOSTS": "\n".join(
            f"  {quote(name)}) host={quote(place.ssh_host)}; owner={quote(place.os_user)};;"
            for name, place in sorted(places.items())
        ),
        "DATA_DIRS": "\n".join(f"  {quote(n)}) data={quote(_plain(p.data_dir))};;" for n, p in sorted(places.items())),
        "CONFIGS": "\n".join(f"  {quote(n)}) config={quote(_plain(p.config))};;" for n, p in sorted(places.items())),
    }
    here = _of(checkpoint.held, held)
    histories = "".join(
        _fill(_HISTORY, common, here | {"MEMBER": quote(name), "OTHER_DATA": _plain(places[name].data_dir)})
        for name in checkpoint.others
    )
    parts = [_fill(_HEAD, common, here)]
    parts += [_fill(_STOP, common, _of(name, places[name])) for name in order]
    parts.append(_fill(_RECOVER, {**common, "HISTORIES": histories}, here))
    parts += [_fill(_REJOIN, common, _of(name, places[name])) for name in checkpoint.others]
    parts.append(_fill(_END, common, here))
    return "".join(parts)


def _of(name: str, place: Place) -> dict[str, str]:
    return {
        "MEMBER": quote(name),
        "WHO": _plain(name),
        "CONFIG": _plain(place.config),
        "DATA": _plain(place.data_dir),
        "BIN": _plain(place.bin_dir),
        "PATRONICTL": _plain(place.patronictl),
        "START": place.start.replace("'", "'\\''"),
        "STOP": place.stop.replace("'", "'\\''"),
    }


def _fill(template: str, *values: Mapping[str, str]) -> str:
    known = {name: value for group in values for name, value in group.items()}
    # In one pass: what a value holds is never taken for a place to fill.
    return _PLACE.sub(lambda found: known[found[1]], template)


def _plain(value: str) -> str:
    """Return a value that stands between double quotes in the script.

    :raises RefusedError: for one that a shell would read as something else there.
    """
    if any(character in value for character in '"$`\\\n\r\0'):
        raise RefusedError(f"found {value[:80]!r}; a runbook cannot be written with such a name or path")
    return value
