"""Checks of the configuration against shards, ranks and machine, before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedgan_mpi import plugins
from fedgan_mpi.algorithms.privacy import check_privacy
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import MIN_SIZE, Config
from fedgan_mpi.config.record import PROFILE_WARM_UP
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.pinned_file import check_imagenet_packages, read_inception_weights
from fedgan_mpi.federation.participation import Participation, check_count
from fedgan_mpi.hardware.cpu import multiplies_bfloat16
from fedgan_mpi.hardware.gpu import gpu_count
from fedgan_mpi.trackers import Tracker, check_trackers
from fedgan_mpi.wireless.cost import macs_per_second


def check_machine(config: Config) -> None:
    """Raise UserError if this rank's machine or its packages do not support the configuration."""
    training, gpus = config.training, gpu_count()
    for key, value, instead in (("device", "cuda", "cpu"), ("graphs", "on", "off")):
        if getattr(training, key) == value and not gpus:
            raise UserError(
                f"training.{key} is {value!r}, but this machine has no GPU; "
                f"use 'auto' or {instead!r}"
            )
    on_cpu = training.device == "cpu" or not gpus
    if training.autocast == "bfloat16" and on_cpu and not multiplies_bfloat16():
        raise UserError(
            "training.autocast is 'bfloat16', but this CPU has neither avx512_bf16 nor AMX and "
            "would be slower with it; use 'off'"
        )
    if config.evaluation.extractor == "imagenet":
        check_imagenet_packages()
    check_trackers(config.record.all_trackers)


def check_plugins(config: Config) -> None:
    """Raise UserError if code outside of the program is not permitted, missing, or does not take
    its options. Imports that code, and nothing if the configuration names none."""
    training = config.training
    named = [
        key
        for key, name in (
            ("algorithm.name", config.algorithm.name),
            ("training.loss", training.loss),
            ("training.optimizer", training.optimizer),
            ("model.architecture", config.model.architecture),
            ("participation.policy", config.participation.policy),
            ("aggregation.rule", config.aggregation.rule),
            ("aggregation.server_optimizer", config.aggregation.server_optimizer),
            ("aggregation.compression", config.aggregation.compression),
            ("aggregation.detector", config.aggregation.detector),
            ("evaluation.extractor", config.evaluation.extractor),
            *(("training.augment", name) for name in training.augment),
            *(("evaluation.metrics", name) for name in config.evaluation.metrics),
            *(("record.trackers", name) for name in config.record.trackers),
        )
        if name is not None and not plugins.is_built_in(key, name)
    ]
    if not named and config.aggregation.is_default:
        return
    from fedgan_mpi.algorithms.aggregation.compressors import make_compressor
    from fedgan_mpi.algorithms.aggregation.detectors import make_detector
    from fedgan_mpi.algorithms.aggregation.rules import make_rule
    from fedgan_mpi.algorithms.aggregation.server_optimizer import make_server_optimizer
    from fedgan_mpi.algorithms.registry import algorithm_class, check_algorithm_options
    from fedgan_mpi.evaluation.extractors import check_extractor
    from fedgan_mpi.evaluation.metrics import make_metrics
    from fedgan_mpi.nn.augment import make_augmentations
    from fedgan_mpi.nn.losses import make_loss
    from fedgan_mpi.nn.optimizers import check_optimizer
    from fedgan_mpi.nn.registry import check_network_options

    check_algorithm_options(config.algorithm)
    make_rule(config.aggregation)
    make_server_optimizer(config.aggregation)
    make_compressor(config.aggregation)
    make_detector(config.aggregation)
    if training.loss is not None:
        make_loss(training.loss, training.loss_options)
    optimizer, _ = check_optimizer(training.optimizer, training.optimizer_options)
    if training.has_lr_schedule and not optimizer.follows_schedule:
        raise UserError(
            f"training.optimizer is {training.optimizer!r}, which follows no schedule; set "
            "follows_schedule in it, or leave training.lr_schedule and training.warmup_rounds out"
        )
    make_augmentations(training.augment, training.augment_options)
    check_network_options(config.model)
    check_extractor(config.evaluation)
    make_metrics(config.evaluation.metrics, config.evaluation.metric_options)
    for name in config.record.trackers:
        plugins.load_class("record.trackers", name, Tracker)
    if config.wireless.on and not algorithm_class(config.algorithm.name).has_cost_model():
        raise UserError(
            f"wireless.on is true, but {config.algorithm.name} has no cost model; define "
            "compute_cost and wireless_seconds in it, or leave wireless.on out"
        )


def check_inception(config: Config) -> None:
    """Raise UserError if evaluation.inception_weights is not the expected file."""
    if config.evaluation.inception_weights is not None:
        read_inception_weights(Path(config.evaluation.inception_weights))


def check_world(config: Config, link: Link, devices: int) -> None:
    """Raise UserError if the number of ranks does not suit the number of devices."""
    if not config.algorithm.traits.has_devices:
        return
    if link.device_ranks > devices:
        raise UserError(
            f"there are {link.device_ranks} device ranks for {devices} devices; "
            f"start at most {devices + 1} ranks, one of them the server"
        )
    check_count(config.participation, devices)


def check_manifest(config: Config, directory: Path, manifest: Manifest) -> None:
    """Raise UserError if the configuration does not fit the shards that the manifest describes."""
    channels, height, width = manifest.image_shape
    for key, value, actual in (
        ("model.size", config.model.size, height),
        ("model.size", config.model.size, width),
        ("model.channels", config.model.channels, channels),
    ):
        if value is not None and value != actual:
            raise UserError(f"{key} is {value}, but the images in {directory} have {actual}")
    smallest = min(height, width)
    if config.model.is_built_in and smallest < MIN_SIZE:
        raise UserError(
            f"the images in {directory} are {height}×{width}, but the networks need a height and a "
            f"width of at least {MIN_SIZE} pixels"
        )
    _check_classes(config, directory, manifest)
    check_experiment(config, smallest, manifest.images, manifest.histograms)


def check_experiment(
    config: Config,
    size: int,
    images: Sequence[int],
    histograms: Sequence[Sequence[int]],
) -> None:
    """Raise UserError if the experiment is impossible with these devices and this image size.

    size: The smaller of height and width of an image.
    images: Number of images per device.
    histograms: Label histogram per device.
    """
    config.check_norm(size)
    profile, most = config.record.profile, max(0, config.training.rounds - PROFILE_WARM_UP)
    if profile > most:
        raise UserError(
            f"record.profile is {profile}, but must be at most {most} when training.rounds is "
            f"{config.training.rounds}: the first {PROFILE_WARM_UP} rounds are not profiled"
        )
    attackers = list(config.attack.devices)
    if max(attackers, default=0) > len(images):
        raise UserError(
            f"attack.devices is {attackers}, but must be from 1 to {len(images)}, the number of "
            "devices"
        )
    if attackers and config.attack.kind == "backdoor" and config.attack.patch > size:
        raise UserError(
            f"attack.patch is {config.attack.patch}, but must be at most {size}, the smaller side "
            "of the images"
        )
    batches, maximum = config.algorithm.fake_batches, max(2, len(images))
    if batches > maximum:
        right = f"at most {maximum}, the number of devices"
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
    if config.aggregation.rule != "mean":
        from fedgan_mpi.algorithms.aggregation.rules import check_rule

        check_rule(config.aggregation, participation.count)


def _check_classes(config: Config, directory: Path, manifest: Manifest) -> None:
    """Raise UserError if labels are missing, or if the wire's number type cannot hold them."""
    traits, classes = config.algorithm.traits, len(manifest.class_names)
    sends_classes = config.model.conditional and traits.exchanges_images
    if sends_classes and config.link.wire_dtype == "bfloat16" and classes > 257:
        raise UserError(
            f"link.wire_dtype is 'bfloat16', which holds integers up to 256, but the shards in "
            f"{directory} have {classes} classes; use 'float32'"
        )
    if manifest.class_names and all(sum(counts) > 0 for counts in manifest.histograms):
        return
    policy = config.participation.policy
    for key, value, needs_labels in (
        ("model.conditional", True, config.model.conditional),
        ("participation.policy", policy, policy == "balanced"),
        (
            "algorithm.name",
            config.algorithm.name,
            traits.needs_classes and config.algorithm.preset is None,
        ),
    ):
        if needs_labels:
            raise UserError(f"{key} is {value!r}, but the shards in {directory} have no labels")
