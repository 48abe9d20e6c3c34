"""The images that a rank reads: its devices' shards, and those that are held out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config, least_samples
from fedgan_mpi.data import Manifest, Shard, read_shard, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import sha256_of

MOST_SAMPLES = 10_000


def hosted_devices(devices: int, link: Link) -> list[int]:
    """The devices of this rank, in increasing order; none on the server."""
    return [] if link.is_server else list(range(link.rank, devices + 1, link.device_ranks))


def read_shards(
    directory: Path, manifest: Manifest, devices: Iterable[int], *, in_memory: bool
) -> dict[int, Shard]:
    """Device -> shard. Raises UserError where one is missing, damaged or not the manifest's."""
    shards = {}
    for device in devices:
        path = directory / shard_name(device)
        shards[device] = read_shard(path, image_shape=manifest.image_shape, in_memory=in_memory)
        manifest.check_shard(shards[device], device)
    return shards


def keeps_in_memory(config: Config, link: Link, manifest: Manifest, devices: Iterable[int]) -> bool:
    """Whether this rank reads its devices' images once, as data.read says."""
    if config.data.read != "auto":
        return config.data.read == "memory"
    images = sum(manifest.images[device - 1] for device in devices)
    channels, height, width = manifest.image_shape
    nbytes = images * channels * height * width
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return nbytes * link.ranks_here <= memory / 4


def read_heldout(config: Config, directory: Path, manifest: Manifest) -> Shard | None:
    """The held-out images; None where there are none."""
    if config.data.heldout is None and manifest.heldout is None:
        return None
    path = Path(config.data.heldout) if config.data.heldout else directory / str(manifest.heldout)
    heldout = read_shard(path, image_shape=manifest.image_shape)
    if config.data.heldout is None:
        manifest.check_heldout(heldout)
    check_samples(config, len(heldout), path)
    return heldout


def check_samples(config: Config, heldout: int, where: Path | str) -> None:
    """Raises UserError where a score needs more images than are held out."""
    samples = config.evaluation.samples
    least = least_samples(config.evaluation.metrics)
    if heldout < least:
        raise UserError(f"{where} holds {heldout} images, but a score needs at least {least}")
    if samples is not None and samples > heldout:
        reason = "the floor needs as many real images"
        raise UserError(
            f"evaluation.samples is {samples}, but {where} holds {heldout} and {reason}"
        )


def scored_samples(config: Config, heldout: Shard | None) -> int:
    """Generated images per score; 0 where nothing is held out to compare them with."""
    if heldout is None:
        return 0
    return config.evaluation.samples or min(len(heldout), MOST_SAMPLES)


def check_extractor(directory: Path, manifest: Manifest) -> None:
    """Raises UserError where the scores' extractor is not the one that shards.json describes."""
    if manifest.features is None:
        return
    path = directory / manifest.features
    if manifest.features_sha256 not in (None, sha256_of(path)):
        raise UserError(f"{path} is not the extractor that shards.json describes; it was changed")
