"""The embedded digits: shards for a job that was given none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.data.loading import check_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.training.preflight import check_experiment

_SEED = 0  # the cut is the data set's, so that runs of several seeds can be compared


def check_digits(config: Config) -> None:
    """Raises UserError for what the embedded digits cannot serve, before anything is written."""
    size, _, heldout = plan_digits(config)
    if config.data.heldout is not None:
        path = Path(config.data.heldout)
        check_samples(config, len(read_shard(path, image_shape=(1, size, size))), path)
    else:
        check_samples(config, heldout, "the digits' held-out part")


def plan_digits(config: Config) -> tuple[int, list[list[int]], int]:
    """The embedded digits, cut on paper: pixels, images of each class a device, images held out.

    Raises UserError for what they cannot serve.
    """
    from data_prep.prepare import plan
    from data_prep.sources import digits

    if config.model.channels == 3:
        raise UserError("model.channels is 3, but the embedded digits have 1")
    source = digits(config.model.size or 16)
    assert source.labels is not None
    labels = np.asarray(source.labels)
    parts, heldout = plan(source, devices=config.data.devices, seed=_SEED)
    histograms = [np.bincount(labels[part], minlength=10).tolist() for part in parts]
    size, images = config.model.size or 16, [len(part) for part in parts]
    check_experiment(config, "the embedded digits", size, images, histograms)
    return size, histograms, len(heldout)


def write_digits(config: Config, directory: Path) -> Manifest:
    """Cut them into the configured number of shards in a new directory."""
    from data_prep.prepare import prepare
    from data_prep.sources import digits

    source = digits(config.model.size or 16)
    return prepare(source, directory, devices=config.data.devices, seed=_SEED)
