-- Asks: did the last try to archive a WAL file fail?
-- On: the primary. Rows: one.
-- Columns: fails bool, last_failed_wal text, last_failed_time text.
-- fails: false also where nothing is archived, or nothing was tried yet.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/current/monitoring-stats.html (pg_stat_archiver).
select
    current_setting('archive_mode') <> 'off'
    and coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) as fails,
    last_failed_wal,
    last_failed_time::text as last_failed_time
from pg_stat_archiver;
