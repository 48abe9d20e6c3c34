"""Vectors in GPU memory: the road of each transfer, support by MPI, staging through the host."""
