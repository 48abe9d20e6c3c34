"""Cores, GPUs and machines: what exists, and what each rank uses."""
