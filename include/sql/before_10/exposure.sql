-- Asks: what else would a rollback touch, or who else has already seen what it takes back?
-- On: the primary. Rows: one.
-- Columns: unlogged_tables int, logical_slots int, prepared_transactions int, subscriptions int,
--   publications int, next_xid text (one more than the highest XID that has ended, 64 bits).
-- unlogged_tables counts the connected database only; the others count the whole server.
-- Unlogged tables are empty after a promotion; consumers of logical slots keep what is discarded.
-- subscriptions and publications: 0, there are none before PostgreSQL 10.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/9.6/catalog-pg-class.html (relpersistence),
--   view-pg-replication-slots.html, view-pg-prepared-xacts.html.
select
    (select count(*) from pg_class where relpersistence = 'u' and relkind = 'r')::int as unlogged_tables,
    (select count(*) from pg_replication_slots where slot_type = 'logical')::int as logical_slots,
    (select count(*) from pg_prepared_xacts)::int as prepared_transactions,
    0 as subscriptions,
    0 as publications,
    txid_snapshot_xmax(txid_current_snapshot())::text as next_xid;
