-- Asks: is this the metadata database of an Airflow?
-- On: the primary, in the database in question. Rows: one.
-- Columns: is_airflow bool: whether one schema has the tables that every Airflow has.
-- Needs: nothing; the catalog may be read by everybody.
-- Source: https://www.postgresql.org/docs/current/catalog-pg-class.html; the tables' names: Airflow documentation,
--   "ERD Schema of the Database".
select exists (
    select 1
    from pg_class
    where relkind = 'r' and relname in ('dag_run', 'task_instance', 'slot_pool')
    group by relnamespace
    having count(*) = 3
) as is_airflow;
