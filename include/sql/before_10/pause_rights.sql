-- Asks: may this role pause the replay, and end the pause?
-- On: any member. Rows: one.
-- Columns: pause bool, resume bool.
-- The hold before PostgreSQL 12 only. Who may pause and not resume would take a checkpoint that nobody can end.
-- Needs: nothing.
-- Source: https://www.postgresql.org/docs/9.6/functions-info.html (has_function_privilege).
select
    has_function_privilege('pg_catalog.pg_xlog_replay_pause()', 'execute') as pause,
    has_function_privilege('pg_catalog.pg_xlog_replay_resume()', 'execute') as resume;
