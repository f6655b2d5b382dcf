-- Asks: has this standby received the mark, and has it not applied it?
-- On: the held standby, and with the same parameters on each replica that a failover could choose. Rows: one.
-- Parameters: xid and lsn, from mark.sql and insert_lsn.sql. In psql: \set xid 747  \set lsn 0/40E0458
-- Columns: in_recovery bool, mark_visible bool, received bool, received_lsn text, replayed_lsn text,
--   received_timeline int, receiver_status text, system_identifier text.
-- mark_visible: true when the standby has applied the mark's commit, so the hold came too late. It can also be
--   true for a mark whose commit is still to come, if a transaction with a higher XID has ended before it (a
--   snapshot taken in recovery lists no running transactions, and 9.6 has no txid_status). A pause that is in
--   effect before the mark is made rules that out; otherwise the error is on the safe side: mark again.
-- received: the LSN is flushed on this standby. NULL where nothing has been streamed since the server was
--   started; that says nothing about what lies in its WAL folder.
-- received_timeline and receiver_status: NULL where no WAL receiver runs or the role may not see it.
-- Needs: superuser for the two columns of the receiver, nothing for the others.
-- Source: https://www.postgresql.org/docs/9.6/functions-info.html
--   (txid_visible_in_snapshot, txid_current_snapshot), functions-admin.html (pg_last_xlog_receive_location),
--   monitoring-stats.html (pg_stat_wal_receiver);
--   GetSnapshotData in src/backend/storage/ipc/procarray.c.
select
    pg_is_in_recovery() as in_recovery,
    txid_visible_in_snapshot(:'xid'::bigint, txid_current_snapshot()) as mark_visible,
    pg_last_xlog_receive_location() >= :'lsn'::pg_lsn as received,
    pg_last_xlog_receive_location()::text as received_lsn,
    pg_last_xlog_replay_location()::text as replayed_lsn,
    (select received_tli from pg_stat_wal_receiver) as received_timeline,
    (select status from pg_stat_wal_receiver) as receiver_status,
    (select system_identifier from pg_control_system())::text as system_identifier;
