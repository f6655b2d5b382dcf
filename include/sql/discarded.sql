-- Asks: what would a rollback to the mark discard?
-- On: the primary. Rows: one.
-- Parameters: lsn, xid and taken_at, from insert_lsn.sql and mark.sql.
--   In psql: \set lsn 0/40E0458  \set xid 747  \set taken_at 2026-01-31T12:00:00Z
-- Columns: wal_bytes bigint, transactions bigint, seconds float8.
-- transactions: an upper bound of those that wrote something and ended after the mark: the XIDs given out
--   since, those of transactions that rolled back and of subtransactions among them.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/current/functions-info.html (txid_snapshot_xmax),
--   functions-admin.html (pg_wal_lsn_diff).
select
    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :'lsn'::pg_lsn)::bigint as wal_bytes,
    txid_snapshot_xmax(txid_current_snapshot()) - :'xid'::bigint - 1 as transactions,
    extract(epoch from clock_timestamp() - :'taken_at'::timestamptz)::float8 as seconds;
