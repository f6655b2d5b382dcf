-- Asks: which standbys stream from this server, and how many bytes is each behind?
-- On: the primary, and each replica that another one receives from. Rows: one for each standby; base backups and
--   logical subscribers are left out.
-- Columns: application_name text (under Patroni the member's name), client_addr text, state text,
--   sync_state text, sent_lag_bytes bigint, flush_lag_bytes bigint, replay_lag_bytes bigint,
--   flush_lsn text, replay_lsn text. The lags are relative to the WAL written here, or received here, by now.
-- NULL is unknown, never 0: a standby that has not answered yet, or a role that may not see it.
-- Needs: superuser; another role sees that there is a row, and NULL in all its columns.
-- Source: https://www.postgresql.org/docs/9.6/monitoring-stats.html (pg_stat_replication),
--   view-pg-replication-slots.html (active_pid), functions-admin.html (pg_current_xlog_location,
--   pg_last_xlog_receive_location).
select
    r.application_name,
    host(r.client_addr) as client_addr,
    r.state,
    r.sync_state,
    pg_xlog_location_diff(here.written, r.sent_location)::bigint as sent_lag_bytes,
    pg_xlog_location_diff(here.written, r.flush_location)::bigint as flush_lag_bytes,
    pg_xlog_location_diff(here.written, r.replay_location)::bigint as replay_lag_bytes,
    r.flush_location::text as flush_lsn,
    r.replay_location::text as replay_lsn
from pg_stat_replication r
cross join (
    select
        case
            when pg_is_in_recovery() then coalesce(pg_last_xlog_receive_location(), pg_last_xlog_replay_location())
            else pg_current_xlog_location()
        end as written
) as here
left join pg_replication_slots s on s.active_pid = r.pid
where r.state is distinct from 'backup' and s.slot_type is distinct from 'logical'
order by r.application_name, r.client_addr, r.pid;
