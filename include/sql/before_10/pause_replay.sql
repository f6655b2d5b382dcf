-- Asks: stop replaying WAL. It is a request: hold_settings.sql and proof.sql say when it has taken effect.
-- On: the standby. Rows: one, of no value.
-- The hold before PostgreSQL 12 only: from 14 on Patroni undoes a pause, and a restart does on every version.
-- Needs: EXECUTE on pg_xlog_replay_pause().
-- Source: https://www.postgresql.org/docs/9.6/functions-admin.html (Recovery Control Functions).
select pg_xlog_replay_pause();
