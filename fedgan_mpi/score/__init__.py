"""The command `score`: compares two sets of images that need not belong to a run."""
