-- Grants the role of Airflow's PostgreSQL connection exactly what the statements in this
-- folder need, on PostgreSQL 12 and newer.
-- On: the primary, once, by a superuser; the standbys receive it.
--   psql -d orders -v role=bluegreen -f include/sql/grants.sql
-- The role has to exist, may log in and connect, and needs no more than this for the procedure itself. What a
-- deployment's SQL and its checks need is granted by whoever writes them.
-- In which database: roles are granted for the whole server, functions for one database only. Run this in
-- the database that the connection names.
--   pg_read_all_stats     state, positions and timeline in pg_stat_replication and pg_stat_wal_receiver
--   pg_read_all_settings  the files and folders in pg_settings
--   (pg_monitor would add pg_stat_scan_tables, which nothing here needs)
--   pg_create_restore_point  mark.sql, takeover_write.sql
-- All else that is asked for is open to everybody: pg_control_system, pg_replication_slots, pg_prepared_xacts,
-- pg_subscription without subconninfo, txid_current, txid_status.
-- Source: https://www.postgresql.org/docs/current/predefined-roles.html, functions-admin.html, ddl-priv.html.
grant pg_read_all_stats, pg_read_all_settings to :"role";
grant execute on function pg_catalog.pg_create_restore_point(text) to :"role";
