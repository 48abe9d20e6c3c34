"""Assigns each image of a source to a device or to the held-out set. Reads no pixels."""

from __future__ import annotations

import numpy as np

from data_prep.partitions import Iid, Partition
from data_prep.sources.base import Indices, Source
from fedgan_mpi.errors import UserError
from fedgan_mpi.random_streams import Purpose, numpy_stream

HELDOUT_SHARE = 0.2


def assign_images(
    source: Source,
    *,
    devices: int,
    seed: int,
    partition: Partition | None = None,
    heldout_share: float | None = None,
) -> tuple[list[Indices], Indices]:
    """Return the image indices of each device, and those held out.

    The held-out images are the source's own, or else a random share. The default partition is
    IID. Raises UserError if the partition is impossible, or if `heldout_share` is given although
    the source has its own held-out images.
    """
    if source.heldout is None:
        share = HELDOUT_SHARE if heldout_share is None else heldout_share
        train, heldout = _hold_out(len(source), share, seed)
    elif heldout_share is not None:
        reason = f"{source.name} has its own held-out images"
        raise UserError(f"--heldout-share is {heldout_share:g}, but {reason}; remove the option")
    else:
        heldout = source.heldout
        train = np.setdiff1d(np.arange(len(source)), heldout)
    return (partition or Iid()).split(source, train, devices, seed), heldout


def _hold_out(images: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split indices at random into (training, held out), each sorted."""
    order = numpy_stream(seed, Purpose.SPLIT, 0).permutation(images)
    cut = round(images * share)
    return np.sort(order[cut:]), np.sort(order[:cut])
