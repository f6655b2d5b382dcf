-- Grants the role of Airflow's PostgreSQL connection exactly what the statements in this
-- folder need, on PostgreSQL 9.6 as far as that can be granted.
-- On: the primary, once, by a superuser; the standbys receive it.
--   psql -d orders -v role=bluegreen -f include/sql/before_10/grants.sql
-- The role has to exist, may log in and connect, and needs no more than this for the procedure itself. What a
-- deployment's SQL and its checks need is granted by whoever writes them.
-- In which database: roles are granted for the whole server, functions for one database only. Run this in
-- the database that the connection names.
-- That is not enough: 9.6 has no role like pg_read_all_stats or pg_read_all_settings, and pg_stat_replication,
-- pg_stat_wal_receiver and the files and folders in pg_settings show their columns to superusers only. Others
-- read NULL there, which the checks take for a failure. So on 9.6 the connection's role has to be a
-- superuser; these grants are what is left to give where those
-- views are wrapped in SECURITY DEFINER functions.
--   pg_create_restore_point  mark.sql, takeover_write.sql
--   pg_xlog_replay_pause, pg_xlog_replay_resume  the hold
-- Source: https://www.postgresql.org/docs/9.6/functions-admin.html, monitoring-stats.html,
--   view-pg-settings.html.
grant execute on function pg_catalog.pg_create_restore_point(text) to :"role";
grant execute on function pg_catalog.pg_xlog_replay_pause() to :"role";
grant execute on function pg_catalog.pg_xlog_replay_resume() to :"role";
