"""The algorithms of the papers, one file each. Importing this package does not import torch."""
