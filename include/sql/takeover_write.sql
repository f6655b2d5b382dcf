-- Asks: does this server commit a write? Changes nothing that anybody could read.
-- On: the new primary, as a transaction of its own (autocommit). Rows: one.
-- Parameter: name, a restore point, at most 63 bytes. In psql: \set name bluegreen_example_takeover
-- Columns: lsn text, xid text (64 bits).
-- A restore point and an XID in one transaction make a commit record that is flushed before the row arrives. It does
-- not wait for a synchronous standby: with synchronous_mode_strict there is none before the first member has rejoined.
-- On a server in recovery it fails.
-- Needs: EXECUTE on pg_create_restore_point(text).
-- Source: https://www.postgresql.org/docs/current/functions-admin.html (pg_create_restore_point),
--   functions-info.html (txid_current), functions-admin.html (set_config),
--   runtime-config-wal.html (synchronous_commit); RecordTransactionCommit in src/backend/access/transam/xact.c.
select
    pg_create_restore_point(:'name')::text as lsn,
    txid_current()::text as xid
from set_config('synchronous_commit', 'local', true);
