"""Random streams: one per purpose, so that no result depends on the number of ranks.

A stream is identified by the run's seed and a path of integers, in the way in which numpy's
SeedSequence spawns children.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class Purpose(IntEnum):
    """The first integer of a stream's path; the comments name the other integers.

    Append only: a changed number changes every run.
    """

    PARAMETERS = 0
    PARTICIPATION = 1
    REAL = 2  # device, epoch
    FAKE = 3  # device; 0 is the server
    SCORE = 4  # chunk of images
    GRID = 5
    SPLIT = 6
    CLASSIFIER = 7
    SWAP = 8  # round
    PRIVACY = 9  # round
    REAL_SCORE = 10  # device
    SUBSET = 11  # subset of images
    CELL = 12  # seeded by wireless.seed
    FADING = 13  # round
    AUGMENT_REAL = 14  # device, images drawn before
    AUGMENT = 15  # device; 0 is the server
    ATTACK = 16  # round, device
    STANDING = 17
    ROUNDING = 18  # round, device
    DETECTOR = 19  # round


def _sequence(seed: int, purpose: Purpose, path: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *path))


def numpy_stream(seed: int, purpose: Purpose, *path: int) -> np.random.Generator:
    """Return a numpy generator at the start of a stream."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, path)))


def torch_stream(seed: int, purpose: Purpose, *path: int, device: str = "cpu") -> torch.Generator:
    """Return a torch generator at the start of a stream."""
    import torch

    state = int(_sequence(seed, purpose, path).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(state)
