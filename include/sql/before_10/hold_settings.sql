-- Asks: is the hold in effect here?
-- On: the held standby. Rows: one.
-- Columns: recovery_min_apply_delay text (as SHOW prints it), recovery_min_apply_delay_ms bigint,
--   hot_standby_feedback text (on or off), replay_paused bool, pause_state text.
-- recovery_min_apply_delay: NULL. Before PostgreSQL 12 it is read from recovery.conf, and SQL cannot see it.
-- pause_state: paused as soon as a pause is requested. Before PostgreSQL 14 the server does not say when it has
--   taken effect; proof.sql does.
-- replay_paused and pause_state are NULL where the server is not in recovery.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/9.6/functions-admin.html (Recovery Control Functions),
--   standby-settings.html (recovery_min_apply_delay).
select
    null::text as recovery_min_apply_delay,
    null::bigint as recovery_min_apply_delay_ms,
    current_setting('hot_standby_feedback') as hot_standby_feedback,
    case when pg_is_in_recovery() then pg_is_xlog_replay_paused() end as replay_paused,
    case
        when not pg_is_in_recovery() then null
        when pg_is_xlog_replay_paused() then 'paused'
        else 'not paused'
    end as pause_state;
