"""Data sets, one class each. `fedgan_mpi.plugins` finds the built-in ones and a user's own."""

from __future__ import annotations

from data_prep.sources.base import ArraySource, BadImage, Source
from data_prep.sources.embedded import Digits

__all__ = ["ArraySource", "BadImage", "Digits", "Source"]
