-- Asks: which replication slots are there, and how much WAL does each keep back?
-- On: the primary. Rows: one for each slot.
-- Columns: slot_name text, slot_type text, active bool, restart_lsn text, retained_bytes bigint,
--   wal_status text, database text, plugin text.
-- retained_bytes: NULL where the slot keeps nothing back, because it has never been used or was lost.
-- wal_status: NULL; before PostgreSQL 13 a slot is never given up.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/12/view-pg-replication-slots.html.
select
    slot_name::text as slot_name,
    slot_type,
    active,
    restart_lsn::text as restart_lsn,
    pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as retained_bytes,
    null::text as wal_status,
    database::text as database,
    plugin::text as plugin
from pg_replication_slots
order by slot_name;
