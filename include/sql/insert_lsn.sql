-- Asks: up to where has WAL been inserted? After the mark's COMMIT: an upper bound of the mark.
-- On: the primary. Rows: one. Columns: lsn text.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/current/functions-admin.html (pg_current_wal_insert_lsn).
select pg_current_wal_insert_lsn()::text as lsn;
