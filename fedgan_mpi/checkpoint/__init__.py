"""Checkpoints: their format, the writer and the last step that makes one valid."""
