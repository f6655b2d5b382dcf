-- Asks: which databases are clients connected to?
-- On: the primary. Rows: one for each such database.
-- Columns: database text.
-- Needs: nothing; which database a session is in may be seen by everybody.
-- Source: https://www.postgresql.org/docs/current/monitoring-stats.html (pg_stat_activity).
select distinct datname::text as database
from pg_stat_activity
where datname is not null
order by database;
