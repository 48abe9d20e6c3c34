"""Trains one GAN over MPI on images that never leave their devices (arXiv:2107.08681)."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from mpi4py import MPI

    from fedgan_mpi.callbacks import Callback
    from fedgan_mpi.config import Config
    from fedgan_mpi.run.generator_file import TrainedGenerator
    from fedgan_mpi.run.result import Result


def train(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    shards: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    comm: MPI.Comm | None = None,
    resume: str | Path | None = None,
    networks: str | Callable[..., Any] | None = None,
    algorithm: str | type[Any] | None = None,
) -> Result:
    """Train a GAN. Collective over the communicator; one process without mpirun is enough.

    Args:
        config: A TOML file, nested tables such as {"training": {"rounds": 60}}, or a `Config`.
        shards: Overrides `data.shards`.
        callbacks: Called on every rank, in order.
        comm: An mpi4py communicator, which is duplicated. None for all ranks. Rank 0 is the server.
        resume: A run directory to continue with this configuration.
        networks: `build(image_shape, nz, classes, **options) -> (G, D)`, or its import string.
        algorithm: A subclass of `Algorithm`, or its import string.

    Raises UserError on every rank for a mistake in configuration, shards or run directory.
    """
    from fedgan_mpi.training import environment  # noqa: F401 - settings, before numpy and torch
    from fedgan_mpi.training.api import train as train_from_python

    return train_from_python(
        config,
        shards=shards,
        callbacks=callbacks,
        comm=comm,
        resume=resume,
        networks=networks,
        algorithm=algorithm,
    )


def load_generator(
    path: str | Path, networks: str | Callable[..., Any] | None = None
) -> TrainedGenerator:
    """Load a trained generator; needs no MPI.

    Call the result with a number of images. It returns (N, C, H, W), uint8 or uint16 as
    in the shards.

    Args:
        path: A run directory, for its best generator, or a `.safetensors` file.
        networks: Build function or import string of networks that are neither built in nor
            installed. You must name these, because a file must not choose the code that runs.

    Raises UserError if there is no generator, or if its networks must be named.
    """
    from fedgan_mpi.run.generator_file import load

    return load(path, networks)
