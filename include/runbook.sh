#!/bin/bash
@HEAD@
#
# EVERYTHING COMMITTED SINCE THEN IS DISCARDED, and the cluster is down for some seconds.
#
# Run it where ssh reaches every member:   bash THIS_FILE
# Before it on the same line, where it is needed:
#   SSH="ssh -p 22 -l USER"   if plain ssh does not do
#   HOSTS_DOWN="n3 n4"        members whose hosts are certainly dead and cannot come back by themselves
#   BREAK_LOCK=yes            if a run of Airflow that is certainly dead has left its lock
# It asks once. Each step says what it does and what it must print; the first that does not show this stops, and
# says what to do. What is done already is found done: after mending something, run it again from the top.
set -euo pipefail
SSH=${SSH:-ssh}
HOSTS_DOWN=${HOSTS_DOWN:-}
BREAK_LOCK=${BREAK_LOCK:-}

# ---- this cluster -----------------------------------------------------------------------------------------------

cluster_values() {
  cat <<'VALUES'
@CLUSTER@
VALUES
}

# owner_shell: as the owner of the data directory. start, stop and status: as the user that ssh logs in as.
member_values() { # MEMBER
  case $1 in
@MEMBERS@
  *) echo "no member $1" >&2; return 1 ;;
  esac
}

everyone() { for one in @EVERYONE@; do printf '%s\n' "$one"; done; }
others() { for one in @OTHERS@; do printf '%s\n' "$one"; done; }
# Who is stopped, in this order. The held standby is proven by its files before another one is touched; the leader
# comes last, because while another replica runs, that one would be promoted in its place.
to_stop() {
  for one in @TO_STOP@; do printf '%s\n' "$one"; done |
    LEADS=$leads awk '$0 != ENVIRON["LEADS"] { print } $0 == ENVIRON["LEADS"] { last = $0 } END { if (last) print last }'
}
# who leads now, where that is another one than when the checkpoint was taken
leads=

# ---- what the steps are made of ---------------------------------------------------------------------------------

helpers() {
  cat <<'HELPERS'
set -eu
LC_ALL=C; export LC_ALL
umask 077
wal="$data/$wal_name"
owners_tag='(nofailover:[[:space:]]*(true|yes|on|True|TRUE)|failover_priority:[[:space:]]*0)([[:space:],}]|$)'
fail() { printf '%s\n' "$*" >&2; exit 1; }
lost() { printf 'LOST: %s\n' "$*" >&2; exit 3; }
runs() { "$bin/pg_ctl" status -D "$data" >/dev/null 2>&1; }
processes() { # count those that work in the data directory
  pattern=$(readlink -f -- "$data" | sed 's/[][*?\\]/\\&/g')
  find /proc -mindepth 2 -maxdepth 2 -name cwd -lname "$pattern" 2>/dev/null | wc -l
}
says() { "$bin/pg_controldata" "$data" | sed -n "s/^$1: *//p"; } # what pg_controldata says of this now
begun() { # the history file of a timeline that began right after the mark, or nothing
  wanted=$(printf '%s\t[0-9A-F]+/[0-9A-F]+\tafter transaction %s' "$timeline" "$xid32")
  for file in "$wal"/*.history; do if [ -f "$file" ]; then printf '%s\n' "$file"; fi; done | sort -r |
    while read -r file; do
      if tail -n 1 < "$file" | grep -qxE "$wanted"; then printf '%s\n' "$file"; break; fi
    done
}
branch() { # the line of history that proves a promotion right after the mark, or nothing
  file=$(begun)
  if [ -z "$file" ]; then return; fi
  # It is written before the checkpoint there. Until that is done, a crash leads back to the old timeline.
  on=$(says "Latest checkpoint's TimeLineID")
  case $on in '' | *[!0-9]*) fail "$member: pg_controldata says timeline '$on', expected a number" ;; esac
  line=$(tail -n 1 < "$file"); file="$wal/$(printf '%08X' "$on").history"
  if [ -f "$file" ] && grep -qxF -e "$line" < "$file"; then printf '%s\n' "$line"; fi
}
cut_short() { # whether the last start was the recovery, which came to the mark and not to its checkpoint there
  file=$(begun)
  [ -n "$file" ] && [ -z "$(branch)" ] && [ -e "$data/postmaster.opts" ] && [ "$file" -nt "$data/postmaster.opts" ]
}
ask() { # SQL on standard input, over the socket
  PGCONNECT_TIMEOUT=5 "$bin/psql" -XAtqw -v ON_ERROR_STOP=1 -v xid="$xid" -v lsn="$lsn" \
    -h "$socket" -p "$port" -U "$superuser" -d postgres
}
HELPERS
}

current=0 told=
step() { # NUMBER WHAT-IT-DOES WHAT-IT-MUST-PRINT
  current=$1
  printf '\n== %s. %s\n   must print: %s\n' "$1" "$2" "$3"
}
stop() { told=yes; printf '\nSTOPPED in step %s: %s\n' "$current" "$*" >&2; exit 1; }
ended() {
  status=$?
  if [ "$status" != 0 ] && [ -z "$told" ]; then
    printf '\nSTOPPED in step %s with status %s: the line above says over what. ' "$current" "$status" >&2
    printf 'Mend that, then run this again from the top\n' >&2
  fi
}
trap ended EXIT

up() { case " $HOSTS_DOWN " in *" $1 "*) return 1 ;; esac; }

# assign NAME VALUE: print an assignment for a node's script, in base64, so that no shell reads the value
assign() { printf '%s=$(echo %s | base64 -d)\n' "$1" "$(printf '%s' "$2" | base64 | tr -d '\n')"; }

# on MEMBER: run the script on standard input on its node, as the owner of the data directory, once all of it is there
on() (
  eval "$(member_values "$1")"
  { echo '{'; cluster_values; member_values "$1"; helpers; cat; echo '}'; } | $SSH -- "$host" "$owner_shell"
)

# service MEMBER start|stop: run that command of its service manager
service() (
  eval "$(member_values "$1")"
  if [ "$2" = start ]; then command=$start; else command=$stop; fi
  printf '%s </dev/null\n' "$command" | $SSH -- "$host" /bin/sh -s
)

# patroni MEMBER: print "runs" or "does not run", as its status command says; fail when that is not known
patroni() (
  eval "$(member_values "$1")"
  said=$(printf '%s </dev/null 2>&1\necho "bluegreen-status=$?"\n' "$status" | $SSH -- "$host" /bin/sh -s) || exit 1
  case $said in
    *sudo:* | *'Failed to connect to bus'*) ;;
    *bluegreen-status=126 | *bluegreen-status=127) ;;
    *bluegreen-status=0) echo "runs"; exit 0 ;;
    *bluegreen-status=[0-9]*) echo "does not run"; exit 0 ;;
  esac
  printf '%s: the status command (%s) said: %s\n' "$1" "$status" "$said" >&2
  exit 1
)

# start_patroni MEMBER: start it unless it runs
start_patroni() {
  [ "$(patroni "$1")" != "runs" ] || return 0
  service "$1" start || echo "   (its start command failed: what its status command says counts)"
  [ "$(patroni "$1")" = "runs" ]
}

# down MEMBER: print how its server was left; fail unless nothing runs there and nothing starts by itself
down() {
  found=$(patroni "$1") || return 1
  [ "$found" = "does not run" ] || { echo "$1: Patroni runs" >&2; return 1; }
  on "$1" <<'STEP'
if [ -e "$config" ]; then fail "$member: $config is in place, so Patroni could start"; fi
if runs || [ "$(processes)" != 0 ]; then fail "$member: PostgreSQL runs on $data"; fi
printf '%s is down: ' "$member"
"$bin/pg_controldata" "$data" | grep 'Database cluster state' || fail "$member: pg_controldata says no state"
STEP
}

# silent MEMBER: nothing of a host that is called dead may answer
silent() (
  eval "$(member_values "$1")"
  { assign dead "$1"; assign address "$pg_host"; assign dead_port "$pg_port"; cat <<'STEP'
status=0
"$bin/pg_isready" -h "$address" -p "$dead_port" -t 3 || status=$?
[ "$status" = 2 ] || fail "pg_isready on $member ended with $status for $dead ($address:$dead_port), expected 2, no answer"
STEP
  } | on "$held"
)

# led_last: who led when everybody was stopped: its server ended as no standby
led_last() {
  while IFS= read -r member <&3; do
    up "$member" || continue
    on "$member" <<'STEP' || return 1
state=$(says 'Database cluster state')
case $state in
  'in archive recovery' | 'shut down in recovery') ;;
  '') fail "$member: pg_controldata says no state" ;;
  *) printf '%s %s\n' "$(says "Latest checkpoint's TimeLineID")" "$member" ;;
esac
STEP
  done 3<<LIST | sort -n | tail -n 1 | cut -d ' ' -f 2-
$(others)
LIST
}

others_down() {
  while IFS= read -r member <&3; do
    if up "$member"; then
      down "$member" || stop "$member is not down, and would lead or overwrite what is recovered. Stop Patroni and \
PostgreSQL there, leave its configuration aside, then run this again from the top. $1"
    fi
  done 3<<LIST
$(others)
LIST
}

# patronictl's table as lines: NAME TAB ROLE TAB STATE TAB TIMELINE
table() {
  echo 'kept=$config; if [ ! -e "$kept" ]; then kept="$config.bluegreen-aside"; fi
    "$patronictl" -c "$kept" list -f tsv "$scope" </dev/null' | on "$held" | awk -F'\t' '
    !("Member" in at) { for (i = 1; i <= NF; i++) at[$i] = i; next }
    { print $at["Member"] FS $at["Role"] FS $at["State"] FS $at["TL"] }'
}
leader_in_table() { awk -F'\t' '$2 ~ /Leader/ && !n++ { print $1 }'; }
timeline_in_table() { awk -F'\t' '$2 ~ /Leader/ && !n++ { print $4 }'; }

# has_line MEMBER TIMELINE: the history of this timeline has the proven line there
has_line() {
  case $2 in '' | *[!0-9]*) echo "$1: no timeline is known" >&2; return 1 ;; esac
  { assign current "$2"; assign line "$line"; cat <<'STEP'
file="$wal/$(printf '%08X' "$current").history"
grep -xF -- "$line" < "$file" >/dev/null || fail "$member: $file lacks the line: $line"
echo "$member, timeline $current: $line"
STEP
  } | on "$1"
}

# streams MEMBER: it follows the leader on the leader's timeline
streams() {
  list=$(table) || return 1
  now=$(printf '%s\n' "$list" | timeline_in_table)
  [ -n "$now" ] && printf '%s\n' "$list" | member=$1 now=$now awk -F'\t' '
    $1 == ENVIRON["member"] && $3 ~ /^(streaming|running)$/ && $4 == ENVIRON["now"] { found = 1 }
    END { exit !found }'
}

# complete: pg_rewind before 14 leaves out PG_VERSION of a database that was dropped, and nobody can connect to it
complete() {
  found=$(while IFS= read -r member <&3; do
    up "$member" || continue
    on "$member" <<'STEP' || exit 1
cd -- "$data"
for file in base/*/PG_VERSION pg_tblspc/*/PG_*/*/PG_VERSION; do if [ -f "$file" ]; then printf '%s\n' "$file"; fi; done
STEP
  done 3<<LIST
$(everyone)
LIST
  ) || return 1
  while IFS= read -r member <&3; do
    up "$member" || continue
    { assign files "$(printf '%s\n' "$found" | sort -u)"; cat <<'STEP'
cd -- "$data"
printf '%s\n' "$files" | while IFS= read -r file; do
  if [ ! -d "${file%/*}" ] || [ -s "$file" ]; then continue; fi
  cp -p -- PG_VERSION "$file"
  sync -- "$file"
  echo "$member: $file was missing after pg_rewind, and is there again"
done
STEP
    } | on "$member" || return 1
  done 3<<LIST
$(everyone)
LIST
}

old_cluster() {
  echo
  echo "To go back to the old cluster instead, in this order, each as the owner of the files, the start as you log in"
  echo "(where something is as it was already, leave it), and wait for the first one until patronictl list calls it Leader:"
  while IFS= read -r member <&3; do
    eval "$(member_values "$member")"
    echo "  on $member:"
    if [ "$member" = "$held" ]; then
      cat <<TEXT
    $bin/pg_ctl stop -D $data -m fast        # if it runs
    if $config.bluegreen-saved is there: copy its pg_hba.conf to $hba_file, its pg_ident.conf to $ident_file,
      its postgresql.auto.conf (standby.signal, recovery.conf) to $data, then remove $data/recovery.signal
      and $config.bluegreen-saved
TEXT
    fi
    echo "    mv $config.bluegreen-aside $config; rm -f $config.bluegreen-lock; then: $start"
  done 3<<LIST
$(to_stop | awk '{ line[NR] = $0 } END { for (i = NR; i > 0; i--) print line[i] }')
LIST
}

# lock MEMBER look|take: as the DAGs do it, so that nothing of an Airflow that comes back works on the cluster meanwhile
lock() {
  { assign verb "$2"; assign break "$BREAK_LOCK"; assign person "$(id -un | tr -cd 'A-Za-z0-9._-')"; cat <<'STEP'
file="$config.bluegreen-lock"
foreign() { [ -e "$file" ] && ! grep -qF "\"run_id\": \"runbook_$id\"" "$file"; }
if foreign && [ "$break" != yes ]; then fail "$member is locked: $(cat "$file")"; fi
[ "$verb" = take ] || exit 0
if foreign; then rm -f -- "$file"; fi
if [ ! -e "$file" ]; then
  new=$(mktemp -- "$file-XXXXXX")
  printf '{"operation": "rollback", "dag_id": "runbook", "run_id": "runbook_%s", "person": "%s", "since": "%s"}\n' \
    "$id" "$person" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" > "$new"
  ln -- "$new" "$file" || { rm -f -- "$new"; fail "$member was locked by another meanwhile: $(cat "$file")"; }
  rm -f -- "$new"; sync -- "$file"
fi
STEP
  } | on "$1"
}

# prove_held: the mark can be recovered to: not replayed, and all WAL from the last restart point to it is there
prove_held() {
  on "$held" <<'STEP'
line=$(branch)
if [ -n "$line" ]; then echo "proven: promoted already: $line"; exit 0; fi
if [ -n "$(begun)" ] && runs; then echo "proven: $member is at the mark, and ends its recovery"; exit 0; fi
if grep -q '"pause": *true' "$data/patroni.dynamic.json" 2>/dev/null; then
  # Patroni writes this file to the DCS again after the removal.
  fail "the cluster is in maintenance mode, in which $member would not become the leader: patronictl resume first"
fi
if runs; then
  # Patroni's own Python reads the password, if its configuration has one; without it the files alone are looked at.
  kept=$config; if [ ! -e "$kept" ]; then kept="$config.bluegreen-aside"; fi
  python=$(sed -n '1s/^#! *//p' "$(command -v -- "$patronictl")" 2>/dev/null) || python=
  case $python in *python*) ;; *) python=false ;; esac
  PGPASSWORD=$($python - "$kept" 2>/dev/null <<'PYTHON'
import glob, os, sys, yaml
path, found = sys.argv[1], ""
for name in sorted(glob.glob(os.path.join(glob.escape(path), "*.y*ml"))) if os.path.isdir(path) else [path]:
    login = (yaml.safe_load(open(name)) or {}).get("postgresql", {}).get("authentication", {}).get("superuser", {})
    found = login.get("password", found)
print(found)
PYTHON
  ) || PGPASSWORD=
  if [ -n "$PGPASSWORD" ]; then export PGPASSWORD; else unset PGPASSWORD; fi
  if answer=$(ask <<'SQL'
@PROOF@
SQL
  ); then
    case $answer in
      't|f|'*) echo "$member has not replayed transaction $xid" ;;
      't|t|'*) lost "$member has replayed transaction $xid, the mark, and what came after it" ;;
      'f|'*) lost "$member is not a standby any more, so it has applied everything it had received" ;;
      *) fail "$member did not say whether the mark is visible there; it said: $answer" ;;
    esac
  else
    echo "   ($member does not answer over its socket: its files are looked at now, and again when it is stopped)"
  fi
fi
position() { # LSN: as a number
  printf '%s\n' "$1" | grep -qxE '[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}' || fail "found '$1' where an LSN was expected"
  echo "$(( (0x${1%/*} << 32) + 0x${1#*/} ))"
}
control=$("$bin/pg_controldata" "$data") || fail "$member: pg_controldata cannot read $data"
control() { printf '%s\n' "$control" | sed -n "s/^$1: *//p"; }
found=$(control 'Database system identifier')
[ "$found" = "$system_identifier" ] || fail "$data has the system identifier '$found', expected $system_identifier"
found=$(control 'Database cluster state')
# A crash recovery writes pages from after the mark, and the positions below say nothing of it.
case $found in
  'in archive recovery' | 'shut down in recovery') ;;
  *) [ "$found" = 'shutting down' ] && cut_short ||
    lost "the server of $member was '$found', and not as the recovery to the mark leaves it; expected a standby's" ;;
esac
redo=$(control "Latest checkpoint's REDO location")
consistent=$(control 'Minimum recovery ending location')
segment=$(control 'Bytes per WAL segment')
case $segment in '' | 0 | *[!0-9]*) fail "found '$segment' as the size of a WAL file" ;; esac
mark_at=$(position "$lsn"); redo_at=$(position "$redo"); consistent_at=$(position "$consistent")
restore_at=$(position "$restore_lsn")
if [ "$redo_at" -ge "$mark_at" ]; then
  lost "the last restart point of $member is at $redo, past the mark at $lsn, so it has replayed the mark"
fi
if [ "$consistent_at" -gt "$mark_at" ]; then
  lost "the files of $member hold changes up to $consistent, past the mark at $lsn: a recovery cannot end before them"
fi
files() { # FROM: the WAL files up to the mark, without the timeline in their names
  number=$(($1 / segment)); last=$(((mark_at - 1) / segment)); per=$((0x100000000 / segment))
  while [ "$number" -le "$last" ]; do
    printf '%08X%08X\n' "$((number / per))" "$((number % per))"; number=$((number + 1))
  done
}
there() { ls "$wal" | sed -nE 's/^[0-9A-F]{8}([0-9A-F]{16})$/\1/p'; }
missing=$({ there; there; files "$redo_at"; } | sort | uniq -u | head -n 1)
[ -z "$missing" ] || lost "$member lacks WAL between $redo and the mark at $lsn, first the file that ends in $missing"
for part in "$data" "$wal"; do
  free=$(df -Pk -- "$part" | awk 'NR == 2 { print $4 }'); needed=$((2 * segment / 1024 + 32768))
  case $free in '' | *[!0-9]*) fail "df does not say how much is free in $part" ;; esac
  if [ "$free" -lt "$needed" ]; then
    fail "$part has $free kB free, and the end of a recovery writes there: expected $needed. Leave the WAL alone"
  fi
done
# Named, or the program takes the size of a WAL file from any one in the folder, also from one that holds only zeros.
first=$(files "$restore_at" | head -n 1); last=$(files "$restore_at" | tail -n 1); prefix=$(printf '%08X' "$timeline")
set -- "$prefix$first"; if [ "$first" != "$last" ]; then set -- "$@" "$prefix$last"; fi
status=0
said=$("$bin/$waldump" -p "$wal" -t "$timeline" -r Transaction -s "$restore_lsn" -e "$lsn" "$@" 2>&1) || status=$?
if ! commit=$(printf '%s\n' "$said" | grep -E "tx: *$xid32,.*desc: COMMIT([^_A-Z]|\$)"); then
  printf '%s\n' "$said" >&2
  if [ "$status" != 0 ] && ! printf '%s\n' "$said" |
    grep -qE 'WAL|valid record|could not (find|open|read|locate|seek).* file'; then
    fail "$waldump ended with status $status and said nothing about the WAL"
  fi
  lost "the WAL of $member between $restore_lsn and $lsn does not hold the commit of transaction $xid"
fi
printf '%s\n' "$commit"
echo "proven: $member can be recovered to the mark at $lsn (last restart point $redo, files consistent at $consistent)"
STEP
}

# ---- the steps --------------------------------------------------------------------------------------------------

eval "$(cluster_values)"
up "$held" || stop "$held is in HOSTS_DOWN; the old state is on it alone. Nothing was changed"
printf '\n== Cluster %s goes back to transaction %s. Type its name to go on:\n' "$cluster" "$xid"
if [ "${CONFIRM:-}" != "$cluster" ]; then read -r CONFIRM || CONFIRM=; fi
[ "$CONFIRM" = "$cluster" ] || stop "not confirmed; nothing was changed"

step 0 "Look at every node, and prove that $held still stands before the mark" \
  "for each member 'answers', and 'proven'"
while IFS= read -r member <&3; do
  if ! up "$member"; then
    silent "$member" || stop "$member is in HOSTS_DOWN, and it is not certain that it is down (above: why). What runs \
there with the discarded data must be stopped. Nothing was changed"
  else
    echo 'echo "$member answers"' | on "$member" || stop "$member does not answer over ssh as the owner of its data \
(above: why). If its host is certainly dead and cannot come back by itself, put HOSTS_DOWN=\"$member\" before the \
command. Nothing was changed"
    patroni "$member" >/dev/null || stop "on $member it is not known whether Patroni runs (above: why). Let ssh's \
user run that command, or correct it in this file. Nothing was changed"
    lock "$member" look || stop "somebody else works on the cluster (above: who). Wait for the end of that run; if it \
is certainly dead, put BREAK_LOCK=yes before the command. Nothing was changed"
  fi
done 3<<LIST
$(everyone)
LIST
if ! found=$(on "$held" <<'STEP'
[ -e "$config.bluegreen-journal" ] || fail "$member has no $config.bluegreen-journal"
grep -qxE " \"id\": \"$id\",?" "$config.bluegreen-journal" || fail "$config.bluegreen-journal is not that of $id"
line=$(branch)
if [ -z "$line" ]; then echo standby; elif [ -e "$config" ]; then echo opened; else echo promoted; fi
printf '%s\n' "$line"
STEP
); then
  stop "$held holds no checkpoint $id (above: why). It was rolled back to, or released, or another one was taken \
since; where the file was lost only, copy it from another member. Nothing was changed"
fi
reached=${found%%
*}
line=${found#*
}
case $reached in
  standby)
    status=0; prove_held || status=$?
    [ "$status" != 3 ] || stop "checkpoint $id is lost: nobody can go back to it. Repair the release going forward, \
or restore a backup. Nothing was changed by this run; where an earlier one has stopped members, bring them back as \
below, without $held. $(old_cluster)"
    [ "$status" = 0 ] || stop "it is not proven that $held can go back to the mark (above: why). Mend that, then \
run this again. Nothing was changed"
    list=$(table) || stop "patronictl list fails on $held (above: why), and this needs it after the point of no return \
too. Does the DCS answer? Mend that, then run this again. Nothing was changed"
    while IFS= read -r name <&3; do
      up "$name" || continue
      on "$name" <<'STEP' || stop "it is not proven that $name is a member of this cluster (above: why). Nothing was changed"
found=$(says 'Database system identifier')
[ "$found" = "$system_identifier" ] ||
  fail "$member: $data has the system identifier '$found', expected $system_identifier"
STEP
    done 3<<LIST
$(others)
LIST
    strangers=
    while IFS= read -r name <&3; do
      [ -n "$name" ] || continue
      up "$name" || stop "$name is in HOSTS_DOWN, and patronictl list shows it: it lives, or has died a moment ago. Look \
again; when it is certainly dead and not listed, run this again. Nothing was changed"
      everyone | grep -xF -e "$name" >/dev/null || strangers="$strangers$name "
    done 3<<LIST
$(printf '%s\n' "$list" | cut -f 1)
LIST
    [ -z "$strangers" ] || stop "${strangers}joined the cluster after checkpoint $id, so this would not stop it, and it \
would lead with the discarded data. Stop Patroni there for good, wait until patronictl list does not show it, then run \
this again; clone it afresh afterwards. Nothing was changed"
    leads=$(printf '%s\n' "$list" | leader_in_table)
    if [ "$leads" = "$held" ]; then leads=; fi
    if [ -z "$leads" ]; then
      leads=$(led_last) || stop "it is not known who led (above: why). Mend that, then run this again. Nothing was changed"
    fi ;;
  promoted | opened) echo "proven: done already: $held was promoted at the mark: $line" ;;
  *) stop "$held said '$reached' where its state was expected. Nothing was changed" ;;
esac
while IFS= read -r member <&3; do
  if up "$member"; then
    lock "$member" take || stop "the cluster was not locked on $member (above: why). Mend that, then run this again; \
to leave it, remove the .bluegreen-lock beside Patroni's configuration on the other members. Nothing else was changed"
  fi
done 3<<LIST
$(everyone)
LIST

if [ "$reached" != opened ]; then
  step 1 "Stop every member for good: Patroni's configuration aside, then the service, then nothing may run" \
    "for each member 'is down', after $held once more 'proven'"
  if [ "$reached" = standby ]; then
    while IFS= read -r member <&3; do
      up "$member" || continue
      if ! on "$member" <<'STEP'
if [ -e "$config" ]; then
  if [ -e "$config.bluegreen-aside" ]; then fail "$config and $config.bluegreen-aside exist; keep the right one"; fi
  mv -- "$config" "$config.bluegreen-aside"
fi
[ -e "$config.bluegreen-aside" ] || fail "there is neither $config nor $config.bluegreen-aside"
STEP
      then
        stop "Patroni's configuration was not moved aside on $member (above: why), so it was not stopped. Mend that, \
then run this again. $(old_cluster)"
      fi
      service "$member" stop || echo "   (its stop command failed: what its status command says counts)"
      found=
      for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        found=$(patroni "$member") || found=
        [ "$found" != "does not run" ] || break
        sleep 1
      done
      [ "$found" = "does not run" ] || stop "Patroni still runs on $member, or its status command does not say: it \
would start PostgreSQL again. Stop it there, then run this again. $(old_cluster)"
      if ! on "$member" <<'STEP'
for try in 1 2 3 4 5 6 7 8 9 10; do
  if ! runs; then break; fi
  "$bin/pg_ctl" stop -D "$data" -m fast -w -t 5 >/dev/null || true
done
for try in 1 2 3 4 5 6 7 8 9 10; do
  if [ "$(processes)" = 0 ]; then exit 0; fi
  sleep 1
done
fail "$(processes) process(es) still work in $data"
STEP
      then
        stop "PostgreSQL still runs on $member. Where its shutdown takes too long, on any but $held: pg_ctl stop -m \
immediate there; then run this again. $(old_cluster)"
      fi
      down "$member" || stop "$member is not down (above: why). Mend that, then run this again. $(old_cluster)"
      if [ "$member" = "$held" ]; then
        status=0; prove_held || status=$?
        [ "$status" != 3 ] || stop "checkpoint $id is lost: nobody can go back to it. No other member was stopped by \
this run; bring $held back, and repair the release going forward. $(old_cluster)"
        [ "$status" = 0 ] || stop "it is not proven that $held can go back to the mark (above: why). Mend that, \
then run this again. $(old_cluster)"
      fi
    done 3<<LIST
$(to_stop)
LIST
  else
    others_down "$held was promoted already: there is only forward"
  fi

  step 2 "Copy the timeline histories of the others to $held, so that recovery takes a number nobody has used" \
    "for each other member 'histories'"
  if [ "$reached" = standby ]; then
    while IFS= read -r member <&3; do
      up "$member" || continue
      histories=$(on "$member" <<'STEP'
cd -- "$wal"
for file in *.history; do
  if [ -f "$file" ] && printf '%s\n' "$file" | grep -qxE '[0-9A-F]{8}\.history'; then
    printf '%s %s\n' "$file" "$(base64 < "$file" | tr -d '\n')"
  fi
done
STEP
      ) || stop "the histories of $member cannot be read (above: why). Mend that, then run this again. \
$(old_cluster)"
      # another node's answer, of which nothing else reaches the held one
      if printf '%s\n' "$histories" | grep -qvxE '([0-9A-F]{8}\.history [A-Za-z0-9+/=]*)?'; then
        stop "$member answered something else than histories: $histories. Look at that node. $(old_cluster)"
      fi
      { assign histories "$histories"; cat <<'STEP'
printf '%s\n' "$histories" | while read -r file text; do
  if [ -n "$file" ] && [ ! -e "$wal/$file" ]; then
    printf '%s' "$text" | base64 -d > "$wal/$file.bluegreen-new"
    mv -- "$wal/$file.bluegreen-new" "$wal/$file"
  fi
done
STEP
      } | on "$held" || stop "the histories of $member were not written to $held (above: why; is the disk full?). \
Mend that, then run this again. $(old_cluster)"
      echo "histories of $member: $(printf '%s' "$histories" | grep -c . || true)"
    done 3<<LIST
$(others)
LIST
  else
    echo "done already"
  fi

  step 3 "Recover $held alone to the mark, shut to clients and to the archive, and promote it there" \
    "after transaction $xid32"
  others_down "The recovery was not begun by this run"
  status=0
  on "$held" <<'STEP' || status=$?
saved="$config.bluegreen-saved"
shut() {
  printf '%s\n' "$closed_hba" > "$hba_file"
  printf '%s\n' "$closed_ident" > "$ident_file"
}
line=$(branch)
if [ ! -d "$saved" ] && [ -n "$line" ]; then fail "$saved is missing, and with it the server's own pg_hba.conf"; fi
if [ ! -d "$saved" ]; then
  rm -rf -- "$saved.new"; mkdir -m 0700 -- "$saved.new"
  cp -p -- "$hba_file" "$saved.new/pg_hba.conf"
  if [ -e "$ident_file" ]; then cp -p -- "$ident_file" "$saved.new/pg_ident.conf"; fi
  for file in postgresql.auto.conf standby.signal recovery.conf; do
    if [ -e "$data/$file" ]; then cp -p -- "$data/$file" "$saved.new/"; fi
  done
  sync; mv -- "$saved.new" "$saved"; sync
fi
shut
if [ -n "$line" ]; then
  if runs; then "$bin/pg_ctl" reload -D "$data" >/dev/null; fi
else
  own="$saved/postgresql.auto.conf"; if [ ! -e "$own" ]; then own=/dev/null; fi
  grep -vE "^ *($setting_names) *=" "$own" > "$data/postgresql.auto.conf" || [ "$?" = 1 ] ||
    fail "$own cannot be read, or $data/postgresql.auto.conf not written"
  cat >> "$data/postgresql.auto.conf" <<'SETTINGS'
@SETTINGS@SETTINGS
@SIGNALS@
fi
if ! runs; then
  # Patroni keeps port, addresses and what a primary and a standby must share on the command line only.
  options=$(sed -n "1s/^[^\"]*\"-D\" \"[^\"]*\" *//p" "$data/postmaster.opts" | sed "s/'/'\\\\''/g; s/\"/'/g")
  [ -n "$options" ] || fail "found no options of a server started by Patroni in $data/postmaster.opts"
  "$bin/pg_ctl" start -D "$data" -w -t 60 -l "$config.bluegreen-log" -o "$options" </dev/null >/dev/null ||
    echo "   (pg_ctl start failed, or takes long: the server itself is asked)"
fi
try=0
while state=$(echo 'select pg_is_in_recovery()' | ask 2>/dev/null) || state=; [ "$state" != f ]; do
  if ! runs; then
    tail -n 5 -- "$config.bluegreen-log" >&2 || true
    if [ -n "$(branch)" ]; then exit 7; fi
    if [ -n "$(begun)" ]; then exit 8; fi
    fail "the server ended before its promotion"
  fi
  try=$((try + 1))
  if [ "$try" -ge 18000 ]; then exit 6; fi
  if [ "$((try % 150))" = 0 ]; then echo "   still recovering"; fi
  sleep 0.2
done
line=$(branch)
[ -n "$line" ] || exit 5
printf '%s\n' "$line"
STEP
  if [ "$status" != 0 ] && [ "$reached" = promoted ]; then status=7; fi
  case $status in
    0) ;;
    5) stop "$held was promoted, but not at the mark: checkpoint $id is lost, and $held holds another state. Do not \
start Patroni on it. To serve again, bring the others back as below, without $held; then remove its data directory \
and bring it back as well, to be cloned. $(old_cluster)" ;;
    6) stop "$held still recovers after an hour, as far as is known. Watch $held's log (its configuration's \
.bluegreen-log): while it replays, wait, then run this again" ;;
    7) stop "$held was promoted at the mark, but does not run as it must (above: why). There is only forward: mend \
that, then run this again" ;;
    8) stop "$held came to the mark, and its server ended before it was promoted there (above: why). Mend that, then run \
this again: it recovers once more. To serve again meanwhile, bring the others back as below, without $held. \
$(old_cluster)" ;;
    255) stop "the connection to $held was lost (above: why), and whether it was promoted is not known. Run this \
again: it looks" ;;
    *) stop "$held was not promoted (above: why). The checkpoint is as it was: mend that, then run this again. \
$(old_cluster)" ;;
  esac
  line=$(echo branch | on "$held") && [ -n "$line" ] || stop "the line of history cannot be read on $held. Run this \
again"
  printf '\n== THE POINT OF NO RETURN IS PASSED: from here there is only forward\n'

  step 4 "Remove the cluster from the DCS" "(uninitialized), or neither members nor configuration"
  others_down "$held is promoted: there is only forward"
  if [ "$(patroni "$held")" != "does not run" ]; then
    stop "Patroni runs on $held, or its status command does not say; it must not yet. Stop it there, then run this \
again"
  fi
  if ! on "$held" <<'STEP'
list() { "$patronictl" -c "$config.bluegreen-aside" "$@" </dev/null; }
# The key of a leader that was killed goes by itself, after Patroni's ttl.
for try in 1 2 3 4 5 6 7 8 9 10 11 12; do
  said=$("$patronictl" -c "$config.bluegreen-aside" remove "$scope" 2>&1 <<ANSWERS
$scope
Yes I am aware
ANSWERS
  ) || true
  if list list "$scope" | grep -F '(uninitialized)'; then exit 0; fi
  # Patroni 3.0 does not say so: there nobody may be a member, and no configuration may be left.
  if members=$(list list -f json "$scope"); then
    left=$(list show-config "$scope" 2>&1 | tail -n 1)
    if [ "$members" = '[]' ]; then
      case $left in '' | null | '{}' | *"'NoneType' object has no attribute 'data'")
        echo "members: $members, configuration: $left"; exit 0 ;;
      esac
    fi
  fi
  sleep 5
done
printf '%s\n' "$said" >&2
fail "members: ${members:-unknown}, configuration: ${left:-unknown}"
STEP
  then
    stop "the DCS still holds the cluster (above: what it says). Does the DCS answer, is a Patroni still running \
somewhere? Mend that, then run this again. $held is promoted and shut to clients: there is only forward"
  fi
fi

step 5 "Open $held to clients and start Patroni on it, without the hold" "$held, as Leader"
if ! on "$held" <<'STEP'
if [ -e "$config.bluegreen-aside" ]; then
  saved="$config.bluegreen-saved"
  own() { if [ -e "$saved/$1" ]; then cp -p -- "$saved/$1" "$2"; else rm -f -- "$2"; fi; }
  cp -p -- "$saved/pg_hba.conf" "$hba_file"
  own pg_ident.conf "$ident_file"
  own postgresql.auto.conf "$data/postgresql.auto.conf"
  if runs; then "$bin/pg_ctl" reload -D "$data" >/dev/null; fi
  if [ -d "$config.bluegreen-aside" ]; then rm -f -- "$config.bluegreen-aside/@HOLD_FILE@"
  elif [ -e "$config.bluegreen-original" ]; then
    sum=$(sed -n 's/.*"held_sha256": "\([0-9a-f]*\)".*/\1/p' "$config.bluegreen-journal")
    if [ "$(sha256sum < "$config.bluegreen-aside" | cut -d ' ' -f 1)" != "${sum:-unknown}" ] &&
      ! cmp -s -- "$config.bluegreen-original" "$config.bluegreen-aside" && [ ! -e "$config.during-the-hold" ]; then
      cp -p -- "$config.bluegreen-aside" "$config.during-the-hold"
      echo "$config was edited during the hold: $config.during-the-hold has that, carry it over afterwards"
    fi
    cp -p -- "$config.bluegreen-original" "$config.bluegreen-aside"
  fi
  # A leader whose owner keeps it out of elections has no slots for the others in Patroni 4: its tag is back at the end.
  if [ -d "$config.bluegreen-aside" ]; then
    if grep -qsE "$owners_tag" "$config.bluegreen-aside"/*; then
      printf 'tags:\n  nofailover: false\n' > "$config.bluegreen-aside/@HOLD_FILE@"
    fi
  else
    sed -i -E "s/$owners_tag/nofailover: false\\3/" "$config.bluegreen-aside"
  fi
  if [ -e "$config" ]; then fail "both $config and $config.bluegreen-aside exist; keep the right one"; fi
  mv -- "$config.bluegreen-aside" "$config"
fi
STEP
then
  stop "$held was not opened to clients, or Patroni's configuration did not come back (above: why). Mend that, then \
run this again; there is only forward"
fi
list=$(table) || stop "patronictl list fails on $held (above: why). Does the DCS answer? Mend that, then run this \
again"
leader_now=$(printf '%s\n' "$list" | leader_in_table)
if [ -n "$leader_now" ] && [ "$leader_now" != "$held" ]; then
  # After a failover among members that have rejoined it is one with the same history, and all is well.
  has_line "$leader_now" "$(printf '%s\n' "$list" | timeline_in_table)" || stop "$leader_now leads with another \
history: it holds the discarded data. Stop Patroni there and move its configuration aside (to .bluegreen-aside). On \
$held do the same, then run this again: it removes the cluster from the DCS once more"
fi
start_patroni "$held" || stop "Patroni does not run on $held after its start (above: why). Mend that, then run this \
again"
found=
for try in $(seq 60); do
  list=$(table) || list=
  found=$(printf '%s\n' "$list" | leader_in_table)
  [ -z "$found" ] || break
  sleep 1
done
case $found in
  "$held") ;;
  "$leader_now") [ -n "$found" ] || stop "nobody is the leader after 60 s. Read Patroni's log on $held; then run \
this again" ;;
  *) stop "$found leads instead of $held: it may hold the discarded data. Stop Patroni there, and run this again" ;;
esac
printf '%s\n' "$list" | awk -F'\t' '$2 ~ /Leader/'

step 6 "Bring the others back, one after the other; who does not stream within 60 s is cloned afresh" \
  "for each 'streams'"
while IFS= read -r member <&3; do
  up "$member" || continue
  if ! streams "$member"; then
    if ! on "$member" <<'STEP'
if [ ! -e "$config" ]; then mv -- "$config.bluegreen-aside" "$config"; fi
STEP
    then
      stop "Patroni's configuration did not come back on $member (above: why). The cluster serves the old state; \
mend that, then run this again"
    fi
    start_patroni "$member" || stop "Patroni does not run on $member after its start (above: why). The cluster \
serves the old state; mend that, then run this again"
    for try in $(seq 30); do if streams "$member"; then break; fi; sleep 2; done
  fi
  if ! streams "$member"; then
    { assign who "$member"
      echo '"$patronictl" -c "$config" reinit "$scope" "$who" --force </dev/null'; } | on "$held" ||
      stop "$member does not stream and cannot be cloned by patronictl reinit (above: why). The cluster serves the \
old state; look at Patroni's log on $member, then run this again"
    for try in $(seq 300); do if streams "$member"; then break; fi; sleep 2; done
    streams "$member" || stop "$member is still being cloned, or that failed. The cluster serves the old state; \
watch patronictl list, and run this again when it streams"
  fi
  echo "$member streams"
done 3<<LIST
$(others)
LIST

step 7 "Prove that every member has the same history, then remove what the checkpoint left" \
  "for each member: after transaction $xid32"
list=$(table) || stop "patronictl list fails on $held (above: why). The cluster serves the old state; run this again"
now=$(printf '%s\n' "$list" | timeline_in_table)
while IFS= read -r member <&3; do
  up "$member" || continue
  for try in 1 2 3 4 5 6 7 8 9; do
    if has_line "$member" "$now" >/dev/null 2>&1; then break; fi
    sleep 2
  done
  has_line "$member" "$now" || stop "$member has another history (above: which), or it cannot be read. Re-clone it \
(patronictl reinit), do not let it be promoted, then run this again"
done 3<<LIST
$(everyone)
LIST
complete || stop "a database's folder may lack its PG_VERSION on a member (above: why), and nobody can connect to it \
there. All members serve the old state; mend that, then run this again"
if ! on "$held" <<'STEP'
if [ -d "$config" ]; then rm -f -- "$config/@HOLD_FILE@"
elif grep -qsE "$owners_tag" "$config.bluegreen-original"; then cp -p -- "$config.bluegreen-original" "$config"; fi
if grep -rqsE "$owners_tag" "$config"; then
  "$patronictl" -c "$config" reload "$scope" "$member" --force </dev/null
  echo "$member leads, and its own configuration keeps it out of elections, as before: switch over, or take the tag out"
fi
STEP
then
  stop "the tag nofailover did not come back on $held (above: why). All members serve the old state; mend that, then \
run this again"
fi
# The held one's journal goes last: as long as it is there, this can be run again.
while IFS= read -r member <&3; do
  up "$member" || continue
  if ! on "$member" <<'STEP'
for file in "$config".bluegreen-*; do
  case $file in
    "$config.bluegreen-journal") ;;
    "$config.bluegreen-log")
      pid=$(head -n 1 -- "$data/postmaster.pid")
      if [ ! -e "/proc/$pid/fd/2" ]; then fail "$member: where server $pid logs to cannot be seen"; fi
      if [ "/proc/$pid/fd/2" -ef "$file" ]; then
        echo "$member was started outside Patroni's service, and logs to $file until patronictl restarts it"
      else rm -f -- "$file"; fi ;;
    *) rm -rf -- "$file" ;;
  esac
done
rm -f -- "$config.bluegreen-journal"
STEP
  then
    stop "what the checkpoint left on $member was not removed (above: why). All members serve the old state; mend \
that, then run this again"
  fi
done 3<<LIST
$(others; printf '%s\n' "$held")
LIST
printf '\n== Done: the state right after transaction %s is served. ' "$xid"
echo "Take a backup now, and look at the WAL archive."
if [ "$rewind_overlooks" = yes ]; then
  echo "pg_rewind of this server's release leaves discarded pages where it rewinds what was a standby: clone each of the"
  echo "others afresh (patronictl reinit $scope MEMBER) before it may lead or answer queries."
fi
if [ -n "$HOSTS_DOWN" ]; then
  echo "Never start Patroni on $HOSTS_DOWN with the old data directory: it holds what was discarded."
fi
