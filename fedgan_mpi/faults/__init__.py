"""Failure detection: a watchdog on each machine, a peer monitor between machines."""
