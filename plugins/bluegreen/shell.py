"""The scripts that run on a node, as text.

Each is POSIX shell for ``/bin/sh -s``: it arrives on standard input, so nothing of it shows in a
process list, and every value in it is quoted here. Files are sent and read as base64, so that no
content is ever parsed by a shell. What must not happen twice looks first.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote

ASIDE = ".bluegreen-aside"
CLEAN = ".bluegreen-clean"
"""What the owner has written, while the new leader runs with a tag of it switched off."""
JOURNAL = ".bluegreen-journal"
LOCK = ".bluegreen-lock"
LOG = ".bluegreen-log"
ORIGINAL = ".bluegreen-original"
RUNBOOK = ".bluegreen-runbook"
SAVED = ".bluegreen-saved"
REWOUND = ".bluegreen-rewound"
"""In a data directory: ``pg_rewind`` has ended, and no server has been started since."""
HOLD_FILE = "zz_bluegreen.yml"
"""The hold's file where Patroni's configuration is a folder: its name sorts last."""

_PRELUDE = r"""set -eu
LC_ALL=C; export LC_ALL
umask 077
processes() { # directory: count the processes that work in it
  pattern=$(printf '%s' "$1" | sed 's/[][*?\\]/\\&/g')
  found=$(find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$pattern" 2>/dev/null | wc -l)
  if [ "$found" = 0 ] && [ -s "$1/postmaster.pid" ]; then
    # one of another group does not show where it works, but what it was called with
    pid=$(head -n 1 < "$1/postmaster.pid")
    if { tr '\000' '\n' < "/proc/$pid/cmdline"; } 2>/dev/null | grep -qxF -e "$1" -e "$data"; then found=1; fi
  fi
  echo "$found"
}
section() { printf '%s\t' "$1"; base64 -w 0; echo; }
put() { # file: replace it atomically by standard input (base64), like the old one in owner and mode
  real=$(readlink -f -- "$1") || { echo "there is no folder for $1" >&2; exit 45; }
  new=$(mktemp -- "$real.bluegreen-XXXXXX")
  trap 'rm -f -- "$new"' EXIT
  base64 -d > "$new"
  if [ -e "$real" ]; then chmod --reference="$real" -- "$new"; chown --reference="$real" -- "$new"; fi
  sync -- "$new"; mv -f -- "$new" "$real"; trap - EXIT; sync -- "$(dirname -- "$real")"
}
bring_over() { # kept, file: put a copy of the kept one in the file's place, atomically; only a full disk gets a link
  real=$(readlink -f -- "$2")
  if [ "$1" -ef "$real" ]; then return; fi
  cp -p -- "$1" "$real.bluegreen-new" 2>/dev/null || ln -f -- "$1" "$real.bluegreen-new"
  sync -- "$real.bluegreen-new"; mv -f -- "$real.bluegreen-new" "$real"
}
"""


def script(body: str, **values: str) -> str:
    """Return a script: the helpers, one quoted variable for each value, then the body."""
    assignments = "".join(f"{name}={quote(value)}\n" for name, value in values.items())
    # in braces: a shell that does not get all of it runs nothing
    return "{\n" + _PRELUDE + assignments + body + "\n}\n"


def encoded(content: str) -> str:
    """Return a file's content in base64, in lines that every shell can read."""
    return base64.encodebytes(content.encode("utf-8", "surrogateescape")).decode("ascii")


def put_file(variable: str, content: str) -> str:
    """Return the line that replaces the file named by a shell variable (and suffix, if any)."""
    return f"put {variable} <<'BLUEGREEN_END'\n{encoded(content)}BLUEGREEN_END\n"


def read_configuration(path: str) -> str:
    """Print Patroni's configuration (in place or moved aside), journal, lock and original."""
    return script(
        f"""
for place in "$config" "$config{ASIDE}"; do
  kind=config; [ "$place" = "$config" ] || kind=aside
  if [ -d "$place" ]; then
    echo folder | section "$kind:"
    for file in "$place"/*.yml "$place"/*.yaml; do
      if [ -f "$file" ]; then section "$kind:${{file##*/}}" < "$file"; fi
    done
  elif [ -e "$place" ]; then section "$kind:" < "$place"; fi
done
for name in journal lock original; do
  if [ -e "$config.bluegreen-$name" ]; then section "$name" < "$config.bluegreen-$name"; fi
done
if [ -d "$config{SAVED}" ]; then echo yes | section saved; fi
if [ -w "$(dirname -- "$(readlink -f -- "$config")")" ]; then echo yes | section writable; fi
id -un | section user
""",
        config=path,
    )


def probe(data_dir: str, bin_dir: str) -> str:
    """Print what is in a data directory and whether anything runs on it."""
    return script(
        r"""
real=$(readlink -f -- "$data" || true)
if [ -z "$bin" ] && [ -s "$data/postmaster.opts" ]; then
  bin=$(dirname -- "$(cut -d ' ' -f 1 < "$data/postmaster.opts")")
fi
if [ -z "$bin" ] && [ -s "$data/$rewound" ]; then bin=$(head -n 1 "$data/$rewound"); fi
if [ -z "$bin" ]; then bin=$(dirname -- "$(command -v pg_controldata || echo /nowhere/x)"); fi
if [ ! -x "$bin/pg_controldata" ] && [ -s "$data/PG_VERSION" ]; then
  bin=/usr/lib/postgresql/$(cat "$data/PG_VERSION")/bin
fi
printf %s "$bin" | section bin_dir
for program in pg_ctl pg_controldata psql pg_rewind pg_waldump pg_xlogdump; do
  if [ -x "$bin/$program" ]; then echo "$program"; fi
done | section programs
date +%s | section now
if [ -d "$data" ]; then
  echo yes | section exists
  find -H "$data" -mindepth 1 -maxdepth 1 | wc -l | section entries
  processes "$real" | section processes
  for file in PG_VERSION postmaster.opts postmaster.pid postgresql.auto.conf recovery.conf patroni.dynamic.json; do
    if [ -f "$data/$file" ]; then section "file:$file" < "$data/$file"; fi
  done
  for file in standby.signal recovery.signal backup_label; do
    if [ -e "$data/$file" ]; then echo yes | section "$file"; fi
  done
  if [ -e "$data/backup_label" ] && sed 1d "$data/$rewound" 2>/dev/null | cmp -s - "$data/backup_label"; then
    echo yes | section "$rewound"
  fi
  "$bin/pg_controldata" "$data" 2>/dev/null | section controldata || true
  wal="$data/pg_wal"; [ -d "$wal" ] || wal="$data/pg_xlog"
  if [ -L "$wal" ]; then readlink -f -- "$wal" | section wal_link; fi
  if [ -d "$wal" ]; then
    ls "$wal" | section wal_names
    for file in "$wal"/*.history; do if [ -f "$file" ]; then section "history:${file##*/}" < "$file"; fi; done
    for file in "$wal"/*.history; do
      if [ -e "$data/postmaster.opts" ] && [ "$file" -nt "$data/postmaster.opts" ]; then echo "${file##*/}"; fi
    done | section since_start
    df -Pk -- "$wal" | tail -n 1 | section wal_disk
  fi
  df -Pk -- "$data" | tail -n 1 | section data_disk
  for link in "$data"/pg_tblspc/*; do if [ -L "$link" ]; then readlink -f -- "$link"; fi; done | section tablespaces
fi
""",
        data=data_dir,
        bin=bin_dir,
        rewound=REWOUND,
    )


def replace_files(files: Mapping[str, str], *, keep_original_of: str = "") -> str:
    """Replace files atomically, keeping owner and mode.

    :param keep_original_of: this file is first copied to its ``.bluegreen-original``, unless that exists.
    """
    body = ""
    if keep_original_of:
        body += f"""
if [ ! -e "$original{ORIGINAL}" ]; then
  cp -p -- "$original" "$original{ORIGINAL}.new"; sync -- "$original{ORIGINAL}.new"
  mv -f -- "$original{ORIGINAL}.new" "$original{ORIGINAL}"
fi
"""
    values = {"original": keep_original_of}
    for number, (path, content) in enumerate(files.items()):
        values[f"file{number}"] = path
        body += put_file(f'"$file{number}"', content)
    return script(body, **values)


def restore_original(path: str) -> str:
    """Put the configuration's kept original back, byte for byte, and keep it.

    Only a full disk gets a link: through one, whoever writes over the file in its place changes what is kept.
    """
    return script(
        f"""
original="$config{ORIGINAL}"
if [ -e "$original" ]; then bring_over "$original" "$config"; fi
""",
        config=path,
    )


def remove_files(*paths: str) -> str:
    """Remove files that may be absent already."""
    return script("rm -rf -- " + " ".join(quote(path) for path in paths) + "\n")


def take_lock(path: str, content: str) -> str:
    """Create a lock file, whole or not at all; print what is in an existing one."""
    return script(
        f"""
new=$(mktemp -- "$config{LOCK}-XXXXXX")
base64 -d > "$new" <<'BLUEGREEN_END'
{encoded(content)}BLUEGREEN_END
sync -- "$new"
if ln -- "$new" "$config{LOCK}" 2>/dev/null; then echo taken | section taken
elif [ -e "$config{LOCK}" ]; then section lock < "$config{LOCK}"; fi
rm -f -- "$new"
""",
        config=path,
    )


def drop_lock(path: str, content: str) -> str:
    """Remove a lock file if it is still the given one."""
    return script(
        f"""
if [ -e "$config{LOCK}" ]; then
  if base64 -d <<'BLUEGREEN_END' | cmp -s - "$config{LOCK}"
{encoded(content)}BLUEGREEN_END
  then rm -f -- "$config{LOCK}"; fi
fi
""",
        config=path,
    )


def set_aside(path: str) -> str:
    """Move Patroni's configuration aside, so that the member stays stopped through a reboot (H13)."""
    return script(
        f"""
if [ -e "$config" ]; then
  if [ -e "$config{ASIDE}" ]; then echo "both $config and $config{ASIDE} exist; expected one" >&2; exit 41; fi
  mv -- "$config" "$config{ASIDE}"; sync -- "$(dirname -- "$config")"
fi
test -e "$config{ASIDE}"
""",
        config=path,
    )


def bring_back(path: str) -> str:
    """Move Patroni's configuration back into its place."""
    return script(
        f"""
if [ ! -e "$config" ]; then mv -- "$config{ASIDE}" "$config"; sync -- "$(dirname -- "$config")"; fi
test ! -e "$config{ASIDE}"
""",
        config=path,
    )


def stop_server(data_dir: str, bin_dir: str, *, mode: str, seconds: int, only_stopping: bool = False) -> str:
    """Stop a PostgreSQL that its service manager left running (hazard H14).

    :param only_stopping: refuse unless it has been told to stop before, as its ``postmaster.pid`` says (from 10 on).
    """
    told = """
  pid=$(head -n 1 "$data/postmaster.pid")
  if [ "$(sed -n '8s/ *$//p' "$data/postmaster.pid")" != stopping ] || \\
    [ "$(readlink "/proc/$pid/cwd")" != "$(readlink -f -- "$data")" ]; then
    echo "the server in $data was not told to stop" >&2; exit 45
  fi"""
    return script(
        f"""
if "$bin/pg_ctl" status -D "$data" >/dev/null 2>&1; then{told if only_stopping else ""}
  "$bin/pg_ctl" stop -D "$data" -m {quote(mode)} -w -t {seconds}
fi
""",
        data=data_dir,
        bin=bin_dir,
    )


def prepare_recovery(
    *,
    config: str,
    data_dir: str,
    wal_dir: str,
    originals: Mapping[str, str],
    files: Mapping[str, str],
    histories: Mapping[str, str],
    signals: bool,
) -> str:
    """Save the server's files once, seed the others' histories, then write the files of the recovery.

    :param originals: name in the saved folder to the server's file it is a copy of.
    :param files: path to content.
    :param signals: from 12 on ``standby.signal`` goes and ``recovery.signal`` comes.
    """
    values = {"config": config, "data": data_dir, "wal": wal_dir}
    body = f"""
saved="$config{SAVED}"
if [ ! -d "$saved" ]; then
  rm -rf -- "$saved.new"; mkdir -m 0700 -- "$saved.new"
"""
    for number, (name, path) in enumerate(originals.items()):
        values[f"from{number}"] = path
        body += f'  if [ -e "$from{number}" ]; then cp -p -- "$from{number}" "$saved.new"/{quote(name)}; fi\n'
    body += '  sync -- "$saved.new"/* 2>/dev/null || true\n  mv -- "$saved.new" "$saved"\n'
    body += '  sync -- "$(dirname -- "$saved")"\nfi\n'
    for number, (name, content) in enumerate(histories.items()):
        values[f"history{number}"] = name
        body += f'if [ ! -e "$wal/$history{number}" ]; then ' + put_file(f'"$wal/$history{number}"', content) + "fi\n"
    for number, (path, content) in enumerate(files.items()):
        values[f"file{number}"] = path
        body += put_file(f'"$file{number}"', content)
    if signals:
        body += (
            'rm -f -- "$data/standby.signal"; : > "$data/recovery.signal"; sync -- "$data/recovery.signal" "$data"\n'
        )
    return script(body, **values)


def try_replacing(files: Mapping[str, str]) -> str:
    """Try, beside each file, whether it could be replaced by one of the same owner; say of each that could not why.

    :param files: name to path.
    """
    values, body = {}, ""
    for number, (name, path) in enumerate(files.items()):
        values[f"file{number}"] = path
        body += f"""
why=
if ! real=$(readlink -f -- "$file{number}" 2>&1); then why="there is no folder for it"
elif grep -qF -- " $real " /proc/self/mountinfo; then why="something is mounted on it"
elif ! new=$(mktemp -- "$real.bluegreen-XXXXXX" 2>&1); then why="nothing can be written beside it"
else
  if [ -e "$real" ] && ! chown --reference="$real" -- "$new" 2>/dev/null; then why="it belongs to another user"; fi
  rm -f -- "$new"
fi
if [ -n "$why" ]; then printf '%s' "$file{number}: $why" | section {quote(name)}; fi
"""
    return script(body, **values)


def restore_saved(*, config: str, data_dir: str, originals: Mapping[str, str], signals: str) -> str:
    """Put the saved files back.

    :param signals: ``standby`` to make the server a standby again, ``none`` after its promotion.
    """
    values = {"config": config, "data": data_dir}
    body = f'saved="$config{SAVED}"\nif [ -d "$saved" ]; then\n'
    for number, (name, path) in enumerate(originals.items()):
        values[f"to{number}"] = path
        body += f"""
  to=$(readlink -f -- "$to{number}")
  if [ -e "$saved"/{quote(name)} ]; then
    if ! cmp -s -- "$saved"/{quote(name)} "$to"; then
      cp -p -- "$saved"/{quote(name)} "$to.bluegreen-new"; sync -- "$to.bluegreen-new"
      mv -f -- "$to.bluegreen-new" "$to"
    fi
"""
        body += f'  else rm -f -- "$to{number}"\n  fi\n' if name in OPTIONAL_ORIGINALS else "  fi\n"
    if signals == "standby":
        body += '  rm -f -- "$data/recovery.signal"\n'
        body += (
            '  if [ -e "$saved/standby.signal" ]; then cp -p -- "$saved/standby.signal" "$data/standby.signal"; fi\n'
        )
    body += "fi\n"
    return script(body, **values)


OPTIONAL_ORIGINALS = frozenset({"recovery.conf", "pg_ident.conf", "postgresql.auto.conf"})
"""Files that may not have been there before; putting back means removing them then."""


def start_server(data_dir: str, bin_dir: str, options: list[str], *, log: str, seconds: int) -> str:
    """Start the server outside Patroni; ``pg_ctl -w`` may return before the promotion is done (hazard H3)."""
    text = " ".join(quote(option) for option in options)
    return script(
        f"""
if ! "$bin/pg_ctl" status -D "$data" >/dev/null 2>&1; then
  "$bin/pg_ctl" start -D "$data" -w -t {seconds} -l "$log" -o "$options" </dev/null >/dev/null 2>&1 || status=$?
fi
tail -n 40 -- "$log" 2>/dev/null | section log
exit ${{status:-0}}
""",
        data=data_dir,
        bin=bin_dir,
        log=log,
        options=text,
    )


def server_log(data_dir: str, log: str) -> str:
    """Print the end of what a server wrote: to ``pg_ctl``'s file, and to where its logging collector took over.

    Source: ``pg_current_logfile`` in "System Information Functions", which names ``current_logfiles`` (from 10 on).
    """
    return script(
        """
tail -n 12 -- "$log" 2>/dev/null || true
cd -- "$data"
file=$(sed -n 's/^stderr //p' current_logfiles 2>/dev/null || true)
if [ -n "$file" ]; then tail -n 12 -- "$file" 2>/dev/null || true; fi
""",
        data=data_dir,
        log=log,
    )


def psql(bin_dir: str, socket_dir: str, port: str, user: str, statement: str) -> str:
    """Run one statement over the local socket; the answer's rows are printed unaligned."""
    return script(
        'PGCONNECT_TIMEOUT=5 "$bin/psql" -X -A -t -q -v ON_ERROR_STOP=1 '
        '-h "$socket" -p "$port" -U "$user" -d postgres <<\'BLUEGREEN_END\'\n'
        f"{statement.strip()}\nBLUEGREEN_END\n",
        bin=bin_dir,
        socket=socket_dir,
        port=port,
        user=user,
    )


def waldump(
    bin_dir: str, program: str, wal_dir: str, *, timeline: int, start: str, end: str, files: Sequence[str] = ()
) -> str:
    """Print the transaction records between two LSNs.

    :param files: the first WAL file and, where it is another, the last one. Without them the program takes the
        size of a WAL file from any file in the folder, also from one that was created ahead and holds only zeros.
    """
    options = f' -p "$wal" -t {timeline} -r Transaction -s {quote(start)} -e {quote(end)}'
    return script(
        '"$bin"/' + quote(program) + options + "".join(f" {quote(file)}" for file in files) + "\n",
        bin=bin_dir,
        wal=wal_dir,
    )


def remove_cluster(patronictl: str, config: str, scope: str, *, leader: str = "") -> str:
    """Remove a cluster from the DCS; the answers are those that ``patronictl remove`` asks for (hazard H4).

    :param leader: the name in the leader's key, which it asks for while there is one.
    """
    return script(
        '"$patronictl" -c "$config" remove "$scope" <<BLUEGREEN_END\n$scope\nYes I am aware\n'
        + ("$leader\n" if leader else "")
        + "BLUEGREEN_END\n",
        patronictl=patronictl,
        config=config,
        scope=scope,
        leader=leader,
    )


def list_cluster(patronictl: str, config: str, scope: str) -> str:
    """Print what the DCS holds of a cluster."""
    return script('"$patronictl" -c "$config" list "$scope"\n', patronictl=patronictl, config=config, scope=scope)


LIST_SECONDS = 15


def list_members(patronictl: str, config: str, scope: str) -> str:
    """Print the members that the DCS holds of a cluster, as JSON; fail where it does not answer in time."""
    return script(
        f'timeout -k 5 {LIST_SECONDS} "$patronictl" -c "$config" list -f json "$scope"\n',
        patronictl=patronictl,
        config=config,
        scope=scope,
    )


def remains_of_cluster(patronictl: str, config: str, scope: str) -> str:
    """Print what the DCS holds of a cluster without a table: its members as JSON, its dynamic configuration.

    Where there is no configuration, ``show-config`` of Patroni 3.0 fails over ``None``: what it says is printed too,
    and its status.
    """
    return script(
        """
"$patronictl" -c "$config" list -f json "$scope" | section members
status=0
said=$("$patronictl" -c "$config" show-config "$scope" 2>&1) || status=$?
printf '%s\\n' "$said" | tail -n 5 | section config
echo "$status" | section status
""",
        patronictl=patronictl,
        config=config,
        scope=scope,
    )


def recover_crashed(
    data_dir: str, bin_dir: str, options: Iterable[str], *, recovery_conf: str, hba: str, seconds: int
) -> str:
    """Have a server that crashed replay its own WAL until it is consistent, and shut it down cleanly for ``pg_rewind``.

    It runs as a standby, which writes no WAL of its own: what ``pg_rewind`` (from 13 on) and Patroni do, a recovery in
    single-user mode, ends with a checkpoint that the leader's WAL does not have, is refused for a standby, and takes a
    copy that has not been replayed to its end for a whole one. Source: "Notes" of pg_rewind; ``pg_ctl -w``, which
    waits until a standby answers.

    :param options: with which the server is started.
    :param recovery_conf: what makes it a standby before 12; empty where ``standby.signal`` does.
    :param hba: path of the ``pg_hba.conf`` that lets nobody in; it is written here.
    :param seconds: how long the start, and then the stop, may take.
    """
    words = " ".join(quote(option) for option in options)
    standby = put_file('"$data/recovery.conf"', recovery_conf)
    if not recovery_conf:
        standby = 'rm -f -- "$data/recovery.signal"; : > "$data/standby.signal"\n'
    return script(
        f"""
if [ -e "$data/backup_label" ]; then echo "no server was started in $data since it was copied" >&2; exit 46; fi
echo 'local all all reject' > "$hba"
{standby}
log="$data/.bluegreen-recovery"
"$bin/pg_ctl" start -D "$data" -w -t {seconds} -l "$log" -o "$options" </dev/null >/dev/null || failed=$?
if [ -n "${{failed:-}}" ]; then tail -n 3 -- "$log" >&2 || true; fi
if "$bin/pg_ctl" status -D "$data" >/dev/null 2>&1; then
  "$bin/pg_ctl" stop -D "$data" -m fast -w -t {seconds} >/dev/null || failed=$?
fi
rm -f -- "$hba" "$log"
exit ${{failed:-0}}
""",
        data=data_dir,
        bin=bin_dir,
        hba=hba,
        options=words,
    )


def rewind(
    data_dir: str, bin_dir: str, *, source: str, login: Mapping[str, str], seconds: int, recovers_first: bool
) -> str:
    """Rewind a member that was shut down cleanly to the new leader; the password stays out of the command line.

    It works in the data directory, so that one that outlives its connection is counted among the processes there.
    Its end is noted there too, with the programs' folder (``pg_rewind`` removes ``postmaster.opts``) and the
    ``backup_label`` that it has written: on another's copy the note does not count.

    :param source: libpq connection string without secrets.
    :param login: libpq's environment variables.
    :param recovers_first: it is a version that recovers its target unless it is told not to.
    """
    exports = "".join(f"{name}={quote(value)}; export {name}\n" for name, value in login.items())
    option = "--no-ensure-shutdown " if recovers_first else ""
    return script(
        exports
        + f"""
cd -- "$data"
timeout -k 5 {seconds} "$bin/pg_rewind" {option}--target-pgdata="$data" --source-server="$source" 2>&1
echo "$bin" > {REWOUND}
if [ -e backup_label ]; then cat backup_label >> {REWOUND}; fi
sync -- {REWOUND} .
""",
        data=data_dir,
        bin=bin_dir,
        source=source,
    )


def version_files(data_dir: str) -> str:
    """Print where the PG_VERSION files of databases are, relative to the data directory."""
    return script(
        """
cd -- "$data"
for file in base/*/PG_VERSION pg_tblspc/*/PG_*/*/PG_VERSION; do
  if [ -f "$file" ]; then echo "$file"; fi
done | section files
""",
        data=data_dir,
    )


def add_version_files(data_dir: str, files: Iterable[str]) -> str:
    """Put PG_VERSION into those folders of databases that lack it; all have the data directory's own.

    :param files: paths relative to the data directory.
    """
    lines = "".join(f"{file}\n" for file in files)
    return script(
        f"""
cd -- "$data"
base64 -d <<'BLUEGREEN_END' | while read -r file; do
{encoded(lines)}BLUEGREEN_END
  if [ -d "${{file%/*}}" ] && [ ! -s "$file" ]; then cp -p -- PG_VERSION "$file"; sync -- "$file"; echo "$file"; fi
done
""",
        data=data_dir,
    )


def empty_data_directory(data_dir: str, *, system_identifier: str, bin_dir: str, major: str) -> str:
    """Empty a data directory, its tablespaces and a linked ``pg_wal``, if it is proven to be this cluster's.

    :param system_identifier: expected in ``pg_controldata``; without ``global/pg_control`` only what an
        interrupted copy leaves, a directory without PG_VERSION's server, is emptied.
    """
    return script(
        r"""
if [ -d "$data" ] && [ -n "$(find -H "$data" -mindepth 1 -maxdepth 1 | head -n 1)" ]; then
  if [ "$(processes "$(readlink -f -- "$data")")" != 0 ]; then
    echo "a server still runs on $data" >&2; exit 42
  fi
  if [ -e "$data/global/pg_control" ]; then
    found=$("$bin/pg_controldata" "$data" | sed -n 's/^Database system identifier: *//p')
    if [ -z "$found" ] || [ "$found" != "$identifier" ]; then
      echo "$data has the system identifier '$found', expected $identifier" >&2; exit 43
    fi
  elif [ ! -e "$data/.bluegreen-emptying" ] && [ ! -e "$data/backup_label" ] && [ ! -e "$data/PG_VERSION" ]; then
    echo "$data is not empty and holds no PostgreSQL data" >&2; exit 44
  fi
  : > "$data/.bluegreen-emptying"
  for link in "$data"/pg_tblspc/*; do
    if [ -L "$link" ]; then
      target=$(readlink -f -- "$link")
      for part in "$target/PG_$major"_*; do if [ -d "$part" ]; then rm -rf -- "$part"; fi; done
    fi
  done
  for wal in "$data/pg_wal" "$data/pg_xlog"; do
    if [ -L "$wal" ]; then find "$(readlink -f -- "$wal")" -mindepth 1 -delete; fi
  done
  find -H "$data" -mindepth 1 -maxdepth 1 ! -name .bluegreen-emptying -exec rm -rf -- {} +
  rm -f -- "$data/.bluegreen-emptying"
fi
""",
        data=data_dir,
        bin=bin_dir,
        identifier=system_identifier,
        major=major,
    )


def release_aside(path: str, clean: str | None) -> str:
    """Bring a moved configuration back without the hold, in one step.

    :param clean: its text, or None for the kept original (or, for a folder, without the hold's file).
    """
    body = f"""
if [ -d "$config{ASIDE}" ]; then rm -f -- "$config{ASIDE}/{HOLD_FILE}"
elif [ -e "$config{ASIDE}" ]; then
"""
    if clean is None:
        body += f'  if [ -e "$config{ORIGINAL}" ]; then bring_over "$config{ORIGINAL}" "$config{ASIDE}"; fi\n'
    else:
        body += "  " + put_file(f'"$config{ASIDE}"', clean)
    body += f"""fi
if [ ! -e "$config" ]; then mv -- "$config{ASIDE}" "$config"; sync -- "$(dirname -- "$config")"; fi
test ! -e "$config{ASIDE}"
"""
    return script(body, config=path)


def restore_clean(path: str) -> str:
    """Put what the owner has written back in its place, where something else stands there."""
    return script(
        f"""
if [ -d "$config" ]; then
  rm -f -- "$config/{HOLD_FILE}"
elif [ -e "$config{CLEAN}" ]; then
  base64 < "$config{CLEAN}" | put "$config"; rm -f -- "$config{CLEAN}"
fi
""",
        config=path,
    )


def logs_to(data_dir: str, path: str) -> str:
    """Print whether the server that runs on a data directory writes its standard error to a file, if that is there.

    It fails where that cannot be told.
    """
    return script(
        """
if [ -e "$log" ]; then
  pid=$(head -n 1 -- "$data/postmaster.pid")
  if [ ! -e "/proc/$pid/fd/2" ]; then echo "where server $pid of $data logs to cannot be seen" >&2; exit 46; fi
  if [ "/proc/$pid/fd/2" -ef "$log" ]; then echo yes | section used; fi
fi
""",
        data=data_dir,
        log=path,
    )


def reload_server(data_dir: str, bin_dir: str) -> str:
    """Have a running server read its configuration again."""
    return script('"$bin/pg_ctl" reload -D "$data" >/dev/null\n', data=data_dir, bin=bin_dir)
