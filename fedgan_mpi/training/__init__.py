"""Training: setup, loop, hooks, metrics, resume, recovery and overlap."""
