"""Hold one standby before a deployment, then let it go on or make it the leader."""
