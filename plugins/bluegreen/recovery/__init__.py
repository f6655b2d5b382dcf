"""What to change in which file, per server version, and how to read what PostgreSQL leaves behind."""
