-- Asks: can Patroni's superuser ask a server over its local socket, in the database that it is asked in?
-- On: any member. Rows: one.
-- Parameters: role, the name of Patroni's superuser. In psql: \set role postgres
-- Columns: superuser bool (there is such a role, it is a superuser and may log in),
--   open_database bool (there is a database postgres, and it takes connections).
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/current/view-pg-roles.html, catalog-pg-database.html.
select
    exists (
        select from pg_roles where rolname = :'role' and rolsuper and rolcanlogin
    ) as superuser,
    exists (
        select from pg_database where datname = 'postgres' and datallowconn
    ) as open_database;
