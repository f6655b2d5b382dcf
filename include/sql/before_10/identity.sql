-- Asks: which database system is this, which version, is it in recovery, on which timeline?
-- On: any member. Rows: one.
-- Columns: system_identifier text, server_version_num int, in_recovery bool, timeline int.
--   timeline: on the primary the one that WAL is inserted on; on a standby the one that is being received,
--   NULL where no WAL receiver runs or the role may not see it. The last CHECKPOINT's timeline is not used:
--   after a promotion it is still the old one.
-- Needs: nothing for the first three columns (pg_control_system may be executed by everybody);
--   superuser for a standby's timeline.
-- Source: https://www.postgresql.org/docs/9.6/functions-info.html (pg_control_system, new in 9.6),
--   functions-admin.html (pg_xlogfile_name, pg_current_xlog_insert_location),
--   monitoring-stats.html (pg_stat_wal_receiver).
select
    (select system_identifier from pg_control_system())::text as system_identifier,
    current_setting('server_version_num')::int as server_version_num,
    pg_is_in_recovery() as in_recovery,
    case
        when pg_is_in_recovery() then (select received_tli from pg_stat_wal_receiver)
        else ('x' || substr(pg_xlogfile_name(pg_current_xlog_insert_location()), 1, 8))::bit(32)::int
    end as timeline;
