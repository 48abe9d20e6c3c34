"""The commands, their flags, and the generator of SLURM scripts."""
