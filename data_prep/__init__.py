"""Converts a data set on disk to one HDF5 shard per device."""
