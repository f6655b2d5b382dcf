-- Asks: go on with replaying WAL. Without a pause it does nothing.
-- On: the standby. Rows: one, of no value.
-- Ends the hold before PostgreSQL 12.
-- Needs: EXECUTE on pg_xlog_replay_resume().
-- Source: https://www.postgresql.org/docs/9.6/functions-admin.html (Recovery Control Functions).
select pg_xlog_replay_resume();
