"""The files of a run directory, except checkpoints and reports."""
