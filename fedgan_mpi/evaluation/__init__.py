"""Scores of generators: features, distances and memorization, computed over all ranks.

Feature sums leave a device; images stay on it.
"""
