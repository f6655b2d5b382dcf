-- Asks: up to where has WAL been inserted? After the mark's COMMIT: an upper bound of the mark.
-- On: the primary. Rows: one. Columns: lsn text.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/9.6/functions-admin.html (pg_current_xlog_insert_location).
select pg_current_xlog_insert_location()::text as lsn;
