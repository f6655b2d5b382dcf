-- Asks: what else would a rollback touch, or who else has already seen what it takes back?
-- On: the primary. Rows: one.
-- Columns: unlogged_tables int, logical_slots int, prepared_transactions int, subscriptions int,
--   publications int, next_xid text (one more than the highest XID that has ended, 64 bits).
-- unlogged_tables and publications count the connected database only; the others count the whole server.
-- Unlogged tables are empty after a promotion; consumers of logical slots keep what is discarded.
-- Needs: nothing; of pg_subscription the column subconninfo alone is closed to the public.
-- Source: https://www.postgresql.org/docs/current/catalog-pg-class.html (relpersistence),
--   view-pg-replication-slots.html, view-pg-prepared-xacts.html,
--   catalog-pg-subscription.html, catalog-pg-publication.html.
select
    (select count(*) from pg_class where relpersistence = 'u' and relkind = 'r')::int as unlogged_tables,
    (select count(*) from pg_replication_slots where slot_type = 'logical')::int as logical_slots,
    (select count(*) from pg_prepared_xacts)::int as prepared_transactions,
    (select count(subname) from pg_subscription)::int as subscriptions,
    (select count(*) from pg_publication)::int as publications,
    txid_snapshot_xmax(txid_current_snapshot())::text as next_xid;
