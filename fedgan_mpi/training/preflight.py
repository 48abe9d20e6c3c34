"""What a user may have got wrong about shards, ranks and machines, found without torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fedgan_mpi.algorithms.privacy import check_privacy
from fedgan_mpi.cli.parser import read_provenance
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import NETWORK_SIZES, SNGAN_SIZES, Config
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.inception_file import read_weights
from fedgan_mpi.federation.participation import Participation, check_count
from fedgan_mpi.hardware.cpu import multiplies_bfloat16
from fedgan_mpi.hardware.gpu import cuda_devices
from fedgan_mpi.wireless.cell import macs_per_second


def check_machine(config: Config) -> None:
    """Raises UserError for what this rank's machine or its packages cannot do."""
    if config.training.device == "cuda" and not cuda_devices():
        raise UserError("training.device is 'cuda', but there is no GPU here; use 'cpu' or 'auto'")
    if config.training.graphs == "on" and not cuda_devices():
        raise UserError("training.graphs is 'on', but there is no GPU here; use 'auto' or 'off'")
    on_cpu = config.training.device == "cpu" or not cuda_devices()
    if config.training.autocast == "bfloat16" and on_cpu and not multiplies_bfloat16():
        reason = "this CPU has neither avx512_bf16 nor AMX and would be slower with it"
        raise UserError(f"training.autocast is 'bfloat16', but {reason}; use 'off'")
    if config.record.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "record.tensorboard needs the package tensorboard: `pip install tensorboard`"
        )


def check_inception(config: Config) -> None:
    """Raises UserError where evaluation.inception_weights is not the file that it must be."""
    if config.evaluation.inception_weights is not None:
        read_weights(Path(config.evaluation.inception_weights))


def check_world(config: Config, link: Link, devices: int) -> None:
    """Raises UserError where the ranks cannot play the server and the devices."""
    if not config.algorithm.traits.has_devices:
        return
    if link.size == 1:
        raise UserError(
            "training needs a server and at least one device, but this world has 1 rank; "
            f"start with `mpirun -n {devices + 1} python -m fedgan_mpi …`, or fewer to share ranks"
        )
    if link.device_ranks > devices:
        raise UserError(
            f"there are {link.device_ranks} device ranks for {devices} devices; "
            f"start at most {devices + 1} ranks, one of them the server"
        )
    check_count(config.participation, devices)


def check_manifest(config: Config, directory: Path, manifest: Manifest) -> None:
    """Raises UserError where the networks do not fit the images."""
    channels, height, width = manifest.image_shape
    for key, asked, there in (
        ("model.size", config.model.size, height),
        ("model.channels", config.model.channels, channels),
    ):
        if asked is not None and asked != there:
            raise UserError(f"{key} is {asked}, but the images in {directory} have {there}")
    if height != width or height not in NETWORK_SIZES or channels not in (1, 3):
        right = "1 or 3 channels and 16, 32, 64 or 128 pixels square"
        shape = f"{channels}×{height}×{width}"
        raise UserError(f"the images in {directory} are {shape}, but the networks take {right}")
    _check_classes(config, directory, manifest)
    check_experiment(config, directory, height, manifest.images, manifest.histograms)


def check_experiment(
    config: Config,
    where: Path | str,
    size: int,
    images: Sequence[int],
    histograms: Sequence[Sequence[int]],
) -> None:
    """Raises UserError for what cannot be done with so many devices and pixels, or not with so
    little noise. images, histograms: of device 1, 2, …"""
    if config.model.architecture == "sngan" and size not in SNGAN_SIZES:
        raise UserError(
            f"model.architecture is 'sngan', which is for 32 and 64 pixels, but the images in "
            f"{where} have {size}; use 'dcgan'"
        )
    batches, most = config.algorithm.fake_batches, max(2, len(images))
    if batches > most:
        right = f"at most {most}, the number of devices"
        raise UserError(f"algorithm.fake_batches is {batches}, but must be {right}")
    participation = Participation(
        config.participation,
        images=images,
        batch_sizes=images,
        shares="uniform",
        seed=config.run.seed,
        histograms=histograms,
        wireless=config.wireless,
    )
    macs_per_second(config.wireless, len(images))
    check_privacy(config, participation)


def _check_classes(config: Config, directory: Path, manifest: Manifest) -> None:
    """Raises UserError where something needs classes and the shards have none, or classes have
    numbers that do not travel."""
    sends_classes = config.model.conditional and config.algorithm.traits.devices_keep_discriminator
    if sends_classes and config.link.wire_dtype == "bfloat16" and len(manifest.class_names) > 257:
        reason = f"{len(manifest.class_names)} classes, and bfloat16 counts to 256"
        raise UserError(
            f"link.wire_dtype is 'bfloat16', but the shards in {directory} have {reason}; "
            "use 'float32'"
        )
    if manifest.class_names and all(sum(counts) > 0 for counts in manifest.histograms):
        return
    name, traits = config.algorithm.name, config.algorithm.traits
    needs_classes = traits.needs_classes and config.algorithm.preset is None
    for key, value, asks in (
        ("model.conditional", True, config.model.conditional),
        ("participation.policy", "balanced", config.participation.policy == "balanced"),
        ("algorithm.name", name, needs_classes),
    ):
        if asks:
            raise UserError(f"{key} is {value!r}, but the shards in {directory} have no labels")


def check_same_shards(run: Path, manifest: Manifest) -> None:
    """Raises UserError where a run was trained on others."""
    recorded = read_provenance(run).get("shards_sha256")
    if recorded != manifest.sha256:
        raise UserError(
            f"{run} was trained on other shards (SHA-256 {recorded}, now {manifest.sha256})"
        )
