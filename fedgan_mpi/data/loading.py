"""Reads the shards of a rank's devices and the held-out images. Knows nothing of MPI."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedgan_mpi.config import Config, least_samples
from fedgan_mpi.data import Manifest, Shard, read_shard, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import sha256_of
from fedgan_mpi.hardware.memory import memory_limit

MAX_SAMPLES = 10_000


def hosted_devices(devices: int, rank: int, device_ranks: int) -> list[int]:
    """Return the devices that a rank hosts, in increasing order. The server, rank 0, hosts none
    unless it is the only rank; then it hosts all.

    Devices and device ranks both count from 1, and devices are assigned to ranks in turn.
    """
    if device_ranks == 0:
        return list(range(1, devices + 1))
    return [] if rank == 0 else list(range(rank, devices + 1, device_ranks))


def read_shards(
    directory: Path, manifest: Manifest, devices: Iterable[int], *, in_memory: bool
) -> dict[int, Shard]:
    """Read the shards of some devices, as a dict from device to shard.

    Raises UserError if a shard is missing, damaged or different from its description in the
    manifest.
    """
    shards = {}
    for device in devices:
        path = directory / shard_name(device)
        shards[device] = read_shard(
            path,
            image_shape=manifest.image_shape,
            dtype=manifest.dtype,
            in_memory=in_memory,
            rows=manifest.images[device - 1],
        )
        manifest.check_shard(shards[device], device)
    return shards


def keeps_in_memory(
    config: Config, manifest: Manifest, devices: Iterable[int], local_ranks: int
) -> bool:
    """Decide whether a rank loads its devices' images into memory, following `data.read`.

    `auto` assumes that each of the `local_ranks` ranks on this machine needs the same memory, and
    allows a quarter of the memory that this job may use there.
    """
    if config.data.read != "auto":
        return config.data.read == "memory"
    images = sum(manifest.images[device - 1] for device in devices)
    nbytes = images * manifest.bytes_per_image
    return nbytes * local_ranks <= memory_limit() / 4


def read_heldout(config: Config, directory: Path, manifest: Manifest) -> Shard | None:
    """Read the held-out images into memory, or return None if there are none.

    `data.heldout` takes precedence over the file that the manifest names. Raises UserError if the
    file is unusable or holds too few images.
    """
    if config.data.heldout is None and manifest.heldout is None:
        return None
    path = Path(config.data.heldout) if config.data.heldout else directory / str(manifest.heldout)
    rows = None if config.data.heldout else manifest.heldout_images
    heldout = read_shard(path, image_shape=manifest.image_shape, dtype=manifest.dtype, rows=rows)
    if config.data.heldout is None:
        manifest.check_heldout(heldout)
    check_samples(config, len(heldout), path)
    return heldout


def check_samples(config: Config, heldout: int, where: Path | str) -> None:
    """Raise UserError if `heldout` images are too few for the configured scores."""
    samples = config.evaluation.samples
    least = least_samples(config.evaluation.metrics)
    if heldout < least:
        raise UserError(f"{where} holds {heldout} images, but a score needs at least {least}")
    if samples is not None and samples > heldout:
        raise UserError(
            f"evaluation.samples is {samples}, but {where} holds {heldout} images and the floor "
            "of a score needs as many real images as generated ones"
        )


def scored_samples(config: Config, heldout: Shard | None) -> int:
    """Return the number of generated images per score; 0 without held-out images."""
    if heldout is None:
        return 0
    return config.evaluation.samples or min(len(heldout), MAX_SAMPLES)


def check_extractor(directory: Path, manifest: Manifest) -> None:
    """Raise UserError if the feature extractor's file does not match its hash in shards.json."""
    path = manifest.extractor_file(directory)
    if path is not None and manifest.features_sha256 not in (None, sha256_of(path)):
        raise UserError(f"{path} is not the extractor that shards.json describes; it was changed")
