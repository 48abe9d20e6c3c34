"""Trains GANs over MPI on data that stays where it is (Ren, Liu, Yu, Guo, arXiv:2107.08681)."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from fedgan_mpi.run.generator_file import TrainedGenerator


def load_generator(path: str | Path) -> TrainedGenerator:
    """The trained generator of a run directory or a `.safetensors` file; needs no MPI.

    Call the result with a number of images, and it gives uint8 (N, C, H, W).
    """
    from fedgan_mpi.run.generator_file import load

    return load(path)
