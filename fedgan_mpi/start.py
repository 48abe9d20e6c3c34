"""What happens before the first round: everything a user may have got wrong is found here, and
agreed on.

Cheap checks come first, and torch, whose import takes nine ranks on two cores many seconds, comes
last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedgan_mpi.cluster.gpu import cuda_devices
from fedgan_mpi.cluster.link import Link
from fedgan_mpi.cluster.participation import Participation, check_count
from fedgan_mpi.cluster.processor import multiplies_bfloat16
from fedgan_mpi.cluster.wireless import macs_per_second
from fedgan_mpi.command_line import PROVENANCE, Train, tomllib
from fedgan_mpi.config import NETWORK_SIZES, Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import refuse_links
from fedgan_mpi.privacy import check_privacy
from fedgan_mpi.run.record import make_run_directory, put_aside, write_config, write_devices
from fedgan_mpi.shards import Manifest, Shard, read_shard, shard_name, union

MOST_SAMPLES = 10_000
_DIGITS_SEED = 0  # the cut is the data set's, so that runs of several seeds can be compared


@dataclass(kw_only=True)
class Start:
    """What the checks leave behind for training: a place to write, and this rank's data."""

    config: Config
    run: Path
    resume: bool
    directory: Path
    """Of the shards."""
    manifest: Manifest
    shards: dict[int, Shard]
    """Of the devices that this rank hosts; the union of all, as device 1, for `centralized`."""
    heldout: Shard | None
    """On the server."""


def start(link: Link, command: Train) -> Start:
    """Collective. Raises AgreedError where anything is wrong, before torch is imported."""
    config = command.config
    link.configure(config.link)
    link.agree(_device_problem(config) or _record_problem(config))
    if config.data.shards is None:
        run, directory, manifest = _start_with_digits(link, command)
    else:
        directory = Path(config.data.shards)
        manifest = link.from_server(lambda: _read_manifest(config, link, directory))
        run = Path()
    shards, heldout, problem = _read_data(link, config, directory, manifest)
    link.agree(problem)
    if config.data.shards is not None:
        run = link.from_server(lambda: _open_run(command, manifest.dataset))
    if command.resume is not None:
        link.from_server(lambda: check_same_shards(run, manifest))
    link.from_server(lambda: _write_config(run, config, manifest, link))
    return Start(
        config=config,
        run=run,
        resume=command.resume is not None,
        directory=directory,
        manifest=manifest,
        shards=shards,
        heldout=heldout,
    )


def _start_with_digits(link: Link, command: Train) -> tuple[Path, Path, Manifest]:
    """The embedded digits become shards in the run directory, written by the server."""
    config = command.config

    def check() -> Path:
        _check_world(config, link, config.data.devices)
        _check_digits(config)
        return _open_run(command, "digits")

    run = link.from_server(check)
    directory = run / "shards"
    if command.resume is None:
        if not link.is_server:
            import torch  # noqa: F401 - the server is about to import it and to work; wait usefully
        manifest = link.from_server(lambda: _write_digits(config, directory))
    else:
        manifest = link.from_server(lambda: Manifest.read(directory))
    return run, directory, manifest


def _check_digits(config: Config) -> None:
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
    parts, heldout = plan(source, devices=config.data.devices, seed=_DIGITS_SEED)
    histograms = [np.bincount(labels[part], minlength=10).tolist() for part in parts]
    size, images = config.model.size or 16, [len(part) for part in parts]
    check_experiment(config, "the embedded digits", size, images, histograms)
    return size, histograms, len(heldout)


def check_samples(config: Config, heldout: int, where: Path | str) -> None:
    """Raises UserError where a score asks for more images than are held out."""
    samples = config.evaluation.samples
    if samples is not None and samples > heldout:
        reason = "the floor needs as many real images"
        raise UserError(
            f"evaluation.samples is {samples}, but {where} holds {heldout} and {reason}"
        )


def _read_manifest(config: Config, link: Link, directory: Path) -> Manifest:
    manifest = Manifest.read(directory)
    _check_world(config, link, manifest.devices)
    check_manifest(config, directory, manifest)
    return manifest


def _write_digits(config: Config, directory: Path) -> Manifest:
    from data_prep.prepare import prepare
    from data_prep.sources import digits

    source = digits(config.model.size or 16)
    return prepare(source, directory, devices=config.data.devices, seed=_DIGITS_SEED)


def _open_run(command: Train, dataset: str) -> Path:
    if command.resume is not None:
        if not (command.resume / "checkpoints").is_dir():
            raise UserError(f"{command.resume} is not a run directory; --resume needs one")
        refuse_links(command.resume)
        return command.resume
    if command.again:
        put_aside(command.config)
    return make_run_directory(command.config, dataset)


def _write_config(run: Path, config: Config, manifest: Manifest, link: Link) -> None:
    where = {"ranks": link.size, "mpi": link.library(), "shards_sha256": manifest.sha256}
    write_config(run, config, where)
    write_devices(run, manifest)


def check_same_shards(run: Path, manifest: Manifest) -> None:
    """Raises UserError where a run was trained on others."""
    with open(run / "config.toml", "rb") as file:
        recorded = tomllib.load(file).get(PROVENANCE, {}).get("shards_sha256")
    if recorded != manifest.sha256:
        raise UserError(
            f"{run} was trained on other shards (SHA-256 {recorded}, now {manifest.sha256})"
        )


def _device_problem(config: Config) -> str | None:
    if config.training.device == "cuda" and not cuda_devices():
        return "training.device is 'cuda', but there is no GPU here; use 'cpu' or 'auto'"
    if config.training.graphs == "on" and not cuda_devices():
        return "training.graphs is 'on', but there is no GPU here; use 'auto' or 'off'"
    on_cpu = config.training.device == "cpu" or not cuda_devices()
    if config.training.autocast == "bfloat16" and on_cpu and not multiplies_bfloat16():
        reason = "this CPU has neither avx512_bf16 nor AMX and would be slower with it"
        return f"training.autocast is 'bfloat16', but {reason}; use 'off'"
    return None


def _record_problem(config: Config) -> str | None:
    if config.record.tensorboard and find_spec("tensorboard") is None:
        return "record.tensorboard needs the package tensorboard: `pip install tensorboard`"
    return None


def _check_world(config: Config, link: Link, devices: int) -> None:
    """Raises UserError where the ranks cannot play the server and the devices."""
    if config.algorithm.name == "centralized":
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
    if config.model.architecture == "sngan" and size not in (32, 64):
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
    sends_classes = config.model.conditional and config.algorithm.devices_keep_discriminator
    if sends_classes and config.link.wire_dtype == "bfloat16" and len(manifest.class_names) > 257:
        reason = f"{len(manifest.class_names)} classes, and bfloat16 counts to 256"
        raise UserError(
            f"link.wire_dtype is 'bfloat16', but the shards in {directory} have {reason}; "
            "use 'float32'"
        )
    if manifest.class_names and all(sum(counts) > 0 for counts in manifest.histograms):
        return
    fegan = config.algorithm.name == "fegan" and config.algorithm.preset is None
    for key, value, asks in (
        ("model.conditional", True, config.model.conditional),
        ("participation.policy", "balanced", config.participation.policy == "balanced"),
        ("algorithm.name", "fegan", fegan),
    ):
        if asks:
            raise UserError(f"{key} is {value!r}, but the shards in {directory} have no labels")


def describe_hosting(link: Link, devices: int) -> str:
    """How the devices are spread over the ranks, for a reader."""
    if link.size == 1:
        return f"1 here; training takes 2 to {devices + 1}"
    hosted = -(-devices // link.device_ranks)
    return f"1 server and {link.device_ranks} device ranks, with up to {hosted} devices each"


def _read_data(
    link: Link, config: Config, directory: Path, manifest: Manifest
) -> tuple[dict[int, Shard], Shard | None, str | None]:
    """This rank's shards and, on the server, the held-out images; or what is wrong with them."""
    centralized = config.algorithm.name == "centralized"
    if centralized:
        mine = list(range(1, manifest.devices + 1)) if link.is_server else []
    else:
        mine = hosted_devices(manifest.devices, link)
    shards, heldout = {}, None
    try:
        shape = manifest.image_shape
        in_memory = centralized or _fits(
            config, link, sum(manifest.images[k - 1] for k in mine), shape
        )
        for device in mine:
            path = directory / shard_name(device)
            shards[device] = read_shard(path, image_shape=shape, in_memory=in_memory)
            manifest.check_shard(shards[device], device)
        if centralized and link.is_server:
            shards = {1: union(list(shards.values()), directory)}
        if link.is_server:
            heldout = read_heldout(config, directory, manifest)
            _check_extractor(directory, manifest)
    except UserError as error:
        return {}, None, str(error)
    return shards, heldout, None


def _check_extractor(directory: Path, manifest: Manifest) -> None:
    """Raises UserError where the scores' extractor is not the one that shards.json describes."""
    if manifest.features is None:
        return
    path = directory / manifest.features
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if manifest.features_sha256 not in (None, sha256):
        raise UserError(f"{path} is not the extractor that shards.json describes; it was changed")


def read_heldout(config: Config, directory: Path, manifest: Manifest) -> Shard | None:
    """The held-out images; None where there are none."""
    if config.data.heldout is None and manifest.heldout is None:
        return None
    path = Path(config.data.heldout) if config.data.heldout else directory / str(manifest.heldout)
    heldout = read_shard(path, image_shape=manifest.image_shape)
    check_samples(config, len(heldout), path)
    return heldout


def _fits(config: Config, link: Link, images: int, shape: tuple[int, int, int]) -> bool:
    if config.data.read != "auto":
        return config.data.read == "memory"
    nbytes = images * shape[0] * shape[1] * shape[2]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return nbytes * link.ranks_here <= memory / 4


def scored_samples(config: Config, heldout: Shard | None) -> int:
    """Generated images per score; 0 where nothing is held out to compare them with."""
    if heldout is None:
        return 0
    return config.evaluation.samples or min(len(heldout), MOST_SAMPLES)


def hosted_devices(devices: int, link: Link) -> list[int]:
    """The devices of this rank, in increasing order; none on the server."""
    return [] if link.is_server else list(range(link.rank, devices + 1, link.device_ranks))
