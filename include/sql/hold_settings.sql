-- Asks: is the hold in effect here?
-- On: the held standby. Rows: one.
-- Columns: recovery_min_apply_delay text (as SHOW prints it), recovery_min_apply_delay_ms bigint,
--   hot_standby_feedback text (on or off), replay_paused bool, pause_state text.
-- replay_paused is true as soon as a pause is requested; pause_state is not paused, pause requested or paused.
-- replay_paused and pause_state are NULL where the server is not in recovery.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/current/functions-admin.html (Recovery Control Functions),
--   runtime-config-replication.html (recovery_min_apply_delay).
select
    current_setting('recovery_min_apply_delay') as recovery_min_apply_delay,
    (
        select setting::bigint from pg_settings where name = 'recovery_min_apply_delay'
    ) as recovery_min_apply_delay_ms,
    current_setting('hot_standby_feedback') as hot_standby_feedback,
    case when pg_is_in_recovery() then pg_is_wal_replay_paused() end as replay_paused,
    case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() end as pause_state;
