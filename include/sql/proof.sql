-- Asks: has this standby received the mark, and has it not applied it?
-- On: the held standby, and with the same parameters on each replica that a failover could choose. Rows: one.
-- Parameters: xid and lsn, from mark.sql and insert_lsn.sql. In psql: \set xid 747  \set lsn 0/40E0458
-- Columns: in_recovery bool, mark_visible bool, received bool, received_lsn text, replayed_lsn text,
--   received_timeline int, receiver_status text, system_identifier text.
-- mark_visible: true when the standby has applied the mark's commit, so the hold came too late.
--   txid_visible_in_snapshot alone is not enough here: a snapshot taken in recovery lists no running
--   transactions, so that a mark whose commit is held back counts as visible as soon as a transaction with a
--   higher XID has ended. txid_status (PostgreSQL 10) knows; it must not be asked about the future, which
--   the case before it sees to. NULL: this standby cannot say, which is never a proof.
-- received: the LSN is flushed on this standby. NULL where nothing has been streamed since the server was
--   started; that says nothing about what lies in its WAL folder.
-- received_timeline and receiver_status: NULL where no WAL receiver runs or the role may not see it.
-- Needs: pg_read_all_stats for the two columns of the receiver, nothing for the others.
-- Source: https://www.postgresql.org/docs/current/functions-info.html (txid_status, txid_current_snapshot),
--   functions-admin.html (pg_last_wal_receive_lsn), monitoring-stats.html (pg_stat_wal_receiver);
--   GetSnapshotData in src/backend/storage/ipc/procarray.c.
select
    pg_is_in_recovery() as in_recovery,
    case
        when :'xid'::bigint >= txid_snapshot_xmax(txid_current_snapshot()) then false
        else case txid_status(:'xid'::bigint) when 'committed' then true when 'in progress' then false end
    end as mark_visible,
    pg_last_wal_receive_lsn() >= :'lsn'::pg_lsn as received,
    pg_last_wal_receive_lsn()::text as received_lsn,
    pg_last_wal_replay_lsn()::text as replayed_lsn,
    (select received_tli from pg_stat_wal_receiver) as received_timeline,
    (select status from pg_stat_wal_receiver) as receiver_status,
    (select system_identifier from pg_control_system())::text as system_identifier;
