"""How long a checkpoint and a rollback take, by hand and through Airflow."""
