"""Detection of cores, GPUs and machines, and their assignment to ranks."""
