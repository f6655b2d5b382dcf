-- Asks: make the mark that a rollback goes back to, and say what identifies it.
-- On: the primary, as a transaction of its own (autocommit). Rows: one.
-- Parameter: name, the restore point, at most 63 bytes. In psql: \set name bluegreen_example
-- Columns: restore_point_lsn text, xid text (64 bits, with the epoch), timeline int,
--   system_identifier text, taken_at text (UTC, ISO 8601).
-- The restore point comes first: a transaction that wrote no WAL of its own commits asynchronously, so the
-- mark could be lost in a crash. That commit is flushed and waits for no standby: the held one would let it wait for ever
-- under synchronous_commit = remote_apply. It is the commit of xid that recovery stops after; its LSN is at most what
-- insert_lsn.sql says once this has returned. recovery_target_xid takes the lower 32 bits only.
-- Needs: EXECUTE on pg_create_restore_point(text).
-- Source: https://www.postgresql.org/docs/current/functions-admin.html
--   (pg_create_restore_point, pg_walfile_name),
--   functions-info.html (txid_current, pg_control_system), functions-admin.html (set_config).
select
    pg_create_restore_point(:'name')::text as restore_point_lsn,
    txid_current()::text as xid,
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int as timeline,
    (select system_identifier from pg_control_system())::text as system_identifier,
    to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as taken_at
from set_config('synchronous_commit', 'local', true);
