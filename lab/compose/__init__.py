"""The clusters and the Airflow of docker-compose.yaml: what they read, and a handle on them."""
