-- Asks: how old is what this standby shows?
-- On: a standby. Rows: one.
-- Columns: replay_delay_seconds float8, receiver_status text, received_lsn text, replayed_lsn text.
-- replay_delay_seconds: 0 only while the receiver is streaming and all that it has received is replayed;
--   otherwise the age of the last transaction replayed, by this server's clock, which also grows while the
--   primary is idle. NULL is unknown, never 0: no transaction replayed since the start, or not a standby.
--   All that was received is not all there is: replication.sql on the primary says how much is still to come.
-- Needs: superuser, for the receiver's status; without it the delay is never 0.
-- Source: https://www.postgresql.org/docs/9.6/functions-admin.html (pg_last_xact_replay_timestamp),
--   monitoring-stats.html (pg_stat_wal_receiver).
select
    case
        when not pg_is_in_recovery() then null
        when r.status = 'streaming' and pg_last_xlog_replay_location() >= pg_last_xlog_receive_location() then 0
        else extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())
    end::float8 as replay_delay_seconds,
    r.status as receiver_status,
    pg_last_xlog_receive_location()::text as received_lsn,
    pg_last_xlog_replay_location()::text as replayed_lsn
from (select 1) as one_row
left join pg_stat_wal_receiver r on true;
