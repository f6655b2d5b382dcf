-- Asks: how is this member configured, as far as the procedure depends on it?
-- On: any member. Rows: one for each name below, whether the server has it or not.
-- Columns: name text, value text, unit text. The value is in the unit, as in pg_settings:
--   max_slot_wal_keep_size in MB and -1 for no limit, recovery_min_apply_delay in ms.
-- value: NULL where this version has no such setting (recovery_min_apply_delay before 12,
--   max_slot_wal_keep_size before 13, synchronized_standby_slots before 17) or where the role may not see it
--   (the files and folders).
-- archive_command and restore_command are not asked for: they may hold a password.
-- Needs: pg_read_all_settings for config_file, data_directory, hba_file, ident_file and
--   unix_socket_directories; in 9.6, which has no such role, superuser.
-- Source: https://www.postgresql.org/docs/current/view-pg-settings.html.
select wanted.name, s.setting as value, s.unit
from (
    values
        ('archive_mode'),
        ('config_file'),
        ('data_checksums'),
        ('data_directory'),
        ('hba_file'),
        ('hot_standby'),
        ('hot_standby_feedback'),
        ('ident_file'),
        ('listen_addresses'),
        ('max_connections'),
        ('max_slot_wal_keep_size'),
        ('max_wal_senders'),
        ('port'),
        ('recovery_min_apply_delay'),
        ('server_version_num'),
        ('synchronous_commit'),
        ('synchronized_standby_slots'),
        ('synchronous_standby_names'),
        ('unix_socket_directories'),
        ('wal_level'),
        ('wal_log_hints'),
        ('wal_segment_size')
) as wanted (name)
left join pg_settings s on s.name = wanted.name
order by wanted.name;
