-- Asks: which standbys stream from this server, and how many bytes is each behind?
-- On: the primary, and each replica that another one receives from. Rows: one for each standby; base backups and
--   logical subscribers are left out.
-- Columns: application_name text (under Patroni the member's name), client_addr text, state text,
--   sync_state text, sent_lag_bytes bigint, flush_lag_bytes bigint, replay_lag_bytes bigint,
--   flush_lsn text, replay_lsn text. The lags are relative to the WAL written here, or received here, by now.
-- NULL is unknown, never 0: a standby that has not answered yet, or a role that may not see it.
-- Needs: pg_read_all_stats (PostgreSQL 10 before 10.2: superuser).
-- Source: https://www.postgresql.org/docs/current/monitoring-stats.html (pg_stat_replication),
--   view-pg-replication-slots.html (active_pid), functions-admin.html (pg_current_wal_lsn,
--   pg_last_wal_receive_lsn).
select
    r.application_name,
    host(r.client_addr) as client_addr,
    r.state,
    r.sync_state,
    pg_wal_lsn_diff(here.written, r.sent_lsn)::bigint as sent_lag_bytes,
    pg_wal_lsn_diff(here.written, r.flush_lsn)::bigint as flush_lag_bytes,
    pg_wal_lsn_diff(here.written, r.replay_lsn)::bigint as replay_lag_bytes,
    r.flush_lsn::text as flush_lsn,
    r.replay_lsn::text as replay_lsn
from pg_stat_replication r
cross join (
    select
        case
            when pg_is_in_recovery() then coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            else pg_current_wal_lsn()
        end as written
) as here
left join pg_replication_slots s on s.active_pid = r.pid
where r.state is distinct from 'backup' and s.slot_type is distinct from 'logical'
order by r.application_name, r.client_addr, r.pid;
