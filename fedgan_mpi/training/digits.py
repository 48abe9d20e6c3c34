"""Shards of the embedded digits, the default data set of a run without `data.shards`.

The split does not depend on the run's seed, so runs with different seeds are comparable.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.data.loading import check_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.training.preflight import check_experiment

_SPLIT_SEED = 0
_DEFAULT_SIZE = 16  # pixels


def digits_shape(config: Config) -> tuple[int, int, int]:
    """Return channels, height and width of the digits in pixels."""
    size = config.model.size or _DEFAULT_SIZE
    return 1, size, size


def check_digits(config: Config) -> None:
    """Raise UserError if the configuration does not fit the embedded digits. Writes nothing."""
    _, heldout = plan_digits(config)
    if config.data.heldout is not None:
        path = Path(config.data.heldout)
        check_samples(config, len(read_shard(path, image_shape=digits_shape(config))), path)
    else:
        check_samples(config, heldout, "the digits' held-out part")


def plan_digits(config: Config) -> tuple[list[list[int]], int]:
    """Split the embedded digits without writing them.

    Returns the class histogram of each device, and the number of held-out images. Raises UserError
    if the configuration does not fit the digits.
    """
    from data_prep.sources import Digits
    from data_prep.split import assign_images

    channels = config.model.channels
    if channels not in (None, 1):
        raise UserError(f"model.channels is {channels}, but the embedded digits have 1")
    _, size, _ = digits_shape(config)
    source = Digits(size=size)
    assert source.labels is not None
    labels = np.asarray(source.labels)
    parts, heldout = assign_images(source, devices=config.data.devices, seed=_SPLIT_SEED)
    histograms = [np.bincount(labels[part], minlength=10).tolist() for part in parts]
    images = [len(part) for part in parts]
    check_experiment(config, size, images, histograms)
    return histograms, len(heldout)


def write_digits(config: Config, directory: Path) -> Manifest:
    """Write the embedded digits as shards to a new directory, one per configured device."""
    from data_prep.prepare import prepare
    from data_prep.sources import Digits

    _, size, _ = digits_shape(config)
    source = Digits(size=size)
    return prepare(source, directory, devices=config.data.devices, seed=_SPLIT_SEED)
