"""The work before the first round: find every mistake of the user, and read this rank's data.

Cheap checks come first. Torch is imported last: its import takes nine ranks on two cores many
seconds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedgan_mpi import plugins
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config, LinkConfig, choose_by_size
from fedgan_mpi.config.io import check_same_shards
from fedgan_mpi.data import Manifest, Shard, union
from fedgan_mpi.data.loading import (
    check_extractor,
    hosted_devices,
    keeps_in_memory,
    read_heldout,
    read_shards,
)
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import refuse_links
from fedgan_mpi.run.directory import make_run_directory, put_aside
from fedgan_mpi.run.lock import acquire_lock
from fedgan_mpi.training.digits import check_digits, digits_shape, write_digits
from fedgan_mpi.training.preflight import (
    check_inception,
    check_machine,
    check_manifest,
    check_plugins,
    check_world,
)

if TYPE_CHECKING:
    from fedgan_mpi.training.start import Start

Data = tuple[str, tuple[int, int, int], int, int]
"""Name, image shape, number of classes (0 without labels) and number of devices."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RunContext:
    """A run directory and this rank's data, checked."""

    config: Config
    run: Path
    resume: bool
    directory: Path
    """Of the shards."""
    manifest: Manifest
    shards: dict[int, Shard]
    """Device -> shard, for the devices hosted here. For `centralized`, device 1 on the server has
    the union of all shards."""
    heldout: Shard | None
    """Held-out images, on the server."""
    start: Start | None
    """The networks of `training.start`; None for new ones, and for a run that is resumed."""

    @property
    def pooled_histogram(self) -> list[int]:
        """Number of images of each class on all devices together."""
        return [sum(counts) for counts in zip(*self.manifest.histograms, strict=True)]

    @property
    def images_and_histograms(self) -> tuple[list[int], list[list[int]]]:
        """Number of images of device 1, 2, …, and their class histograms."""
        manifest = self.manifest
        if self.config.algorithm.traits.has_devices:
            return manifest.images, manifest.histograms
        return [sum(manifest.images)], [self.pooled_histogram]


def prepare_run(
    link: Link, config: Config, *, resume: Path | None = None, replace: bool = False
) -> RunContext:
    """Check everything, read this rank's shards, and create or open the run directory. Collective.

    resume: the run directory to continue. replace: a directory of this name without checkpoints may
    be put aside. Raises AgreedError for mistakes, before torch is imported.
    """
    link.configure(config.link)
    _watch(link, config.link)
    plugins.allow(link.from_server(plugins.allowed))
    link.on_every_rank(lambda: check_plugins(config))
    link.on_every_rank(lambda: check_machine(config))
    link.from_server(lambda: check_inception(config))

    if config.data.shards is None:
        config = choose_by_size(config, digits_shape(config))
        run, directory, manifest, start = _prepare_digits(link, config, resume, replace)
    else:
        directory = Path(config.data.shards)
        manifest = link.from_server(lambda: _read_manifest(link, config, directory))
        config = choose_by_size(config, manifest.image_shape)
    shards, heldout = link.on_every_rank(lambda: _read_data(link, config, directory, manifest))
    if config.data.shards is not None:
        data = (manifest.dataset, manifest.image_shape, len(manifest.class_names), manifest.devices)
        run, start = link.from_server(lambda: _open_run(config, data, resume, replace))
    if resume is not None:
        link.from_server(lambda: check_same_shards(run, manifest.sha256))
    return RunContext(
        config=config,
        run=run,
        resume=resume is not None,
        directory=directory,
        manifest=manifest,
        shards=shards,
        heldout=heldout,
        start=start,
    )


def _watch(link: Link, config: LinkConfig) -> None:
    """Notice deaths from now on, while ranks import, read, try and resume. Collective."""
    # The default deadline may be dropped with a warning. A single process never waits for a rank.
    is_default = config.deadline == LinkConfig().deadline
    deadline = None if is_default and link.size == 1 else config.deadline
    link.watch(deadline, required=not is_default)


def _prepare_digits(
    link: Link, config: Config, resume: Path | None, replace: bool
) -> tuple[Path, Path, Manifest, Start | None]:
    """Write the embedded digits as shards into the run directory. Collective."""

    def check_and_open() -> tuple[Path, Start | None]:
        check_world(config, link, config.data.devices)
        check_digits(config)
        data = ("digits", digits_shape(config), 10, config.data.devices)
        return _open_run(config, data, resume, replace)

    run, start = link.from_server(check_and_open)
    directory = run / "shards"
    if resume is not None:
        return run, directory, link.from_server(lambda: Manifest.read(directory)), None
    if not link.is_server:
        import torch  # noqa: F401 - saves time: the server imports it now, to train the extractor
    return run, directory, link.from_server(lambda: write_digits(config, directory)), start


def _read_manifest(link: Link, config: Config, directory: Path) -> Manifest:
    manifest = Manifest.read(directory)
    check_world(config, link, manifest.devices)
    check_manifest(config, directory, manifest)
    return manifest


def _open_run(
    config: Config, data: Data, resume: Path | None, replace: bool
) -> tuple[Path, Start | None]:
    """Return the run directory, and the networks from which a new run starts."""
    if resume is not None:
        if not (resume / "checkpoints").is_dir():
            raise UserError(f"{resume} is not a run directory; --resume needs one")
        refuse_links(resume)
        acquire_lock(resume)
        return resume, None
    start = check_networks(config, *data[1:])
    if replace:
        put_aside(config)
    return make_run_directory(config, data[0]), start


def check_networks(
    config: Config, image_shape: tuple[int, int, int], classes: int, devices: int
) -> Start | None:
    """Return the networks from which a new run starts; None for new ones.

    classes: of the data; 0 without labels. Raises UserError if `training.start` has other networks,
    or if D has fewer layers than are to be fixed.
    """
    training = config.training
    if training.freeze_discriminator > 0:
        import torch

        from fedgan_mpi.nn.freezing import freeze_layers
        from fedgan_mpi.nn.registry import build

        with torch.device("meta"):  # takes no memory
            _, D = build(config.model, image_shape, classes if config.model.conditional else 0)
        freeze_layers(D, training.freeze_discriminator)
    start = None
    if training.start is not None:
        from fedgan_mpi.training.start import find_start

        start = find_start(config, image_shape, classes, devices)
    if training.freeze_discriminator > 0 and (start is None or start.checkpoint is None):
        logger.warning(
            "training.freeze_discriminator fixes random layers: D does not start from a run"
        )
    return start


def _read_data(
    link: Link, config: Config, directory: Path, manifest: Manifest
) -> tuple[dict[int, Shard], Shard | None]:
    """Read this rank's shards and, on the server, the held-out images."""
    if config.algorithm.traits.has_devices:
        hosted = hosted_devices(manifest.devices, link.rank, link.device_ranks)
        in_memory = keeps_in_memory(config, manifest, hosted, link.local_size)
        shards = read_shards(directory, manifest, hosted, in_memory=in_memory)
    else:
        everyone = list(range(1, manifest.devices + 1)) if link.is_server else []
        shards = read_shards(directory, manifest, everyone, in_memory=True)
        shards = {1: union(list(shards.values()), directory)} if shards else {}
    if not link.is_server:
        return shards, None
    heldout = read_heldout(config, directory, manifest)
    if config.evaluation.extractor == "shards":
        check_extractor(directory, manifest)
    return shards, heldout
