"""Opens a finished or running run for evaluation, on any number of ranks.

Each rank reads a part of the shards. The run directory is not changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedgan_mpi import plugins
from fedgan_mpi.checkpoint.format import read_generator_parameters
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import check_same_shards, read_config
from fedgan_mpi.data import Manifest, PixelType, Shard
from fedgan_mpi.data.loading import read_heldout, read_shards
from fedgan_mpi.errors import AgreedError, UserError
from fedgan_mpi.evaluation.extractors import read_extractors
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.real_images import RealImages
from fedgan_mpi.federation.networks import NetworkPair, build_networks
from fedgan_mpi.files import refuse_links
from fedgan_mpi.hardware.placement import choose_torch_device, set_threads


@dataclass(kw_only=True)
class OpenRun:
    """A run on one rank: configuration, networks, extractors, and a part of the images."""

    config: Config
    pair: NetworkPair
    extractors: list[Extractor]
    real: RealImages
    heldout: Shard
    dtype: PixelType
    """Of the pixels of all images."""
    classes: int
    """Classes of the shards."""
    features: Path | None
    """File of the extractor beside the shards."""


def open_run(
    link: Link,
    run: Path,
    shards: Path | None,
    evaluation: Mapping[str, Any] | None = None,
    networks: str | None = None,
) -> OpenRun:
    """Open a run. Collective.

    shards: the directory of the shards; None: the one in the run's config.toml. evaluation:
    replaces values of the section `evaluation`; None values are ignored. networks: import string of
    the run's networks, if they are neither built in nor installed. Raises AgreedError if
    the run, its shards, the held-out images or the extractor are missing or changed.
    """
    named = [name for name in (networks, (evaluation or {}).get("extractor")) if name]
    plugins.allow([*named, *link.from_server(plugins.allowed)])
    config = link.from_server(lambda: _read_config(run, evaluation or {}, networks))
    link.peer_monitor = config.link.peer_monitor
    link.watch(None, required=False)
    directory = shards or Path(config.data.shards or run / "shards")
    manifest = link.from_server(lambda: _read_manifest(run, directory))
    local_shards, heldout = link.on_every_rank(
        lambda: _read_images(link, config, directory, manifest)
    )
    torch_device = choose_torch_device(config, link)
    link.choose_route(torch_device)
    set_threads(config, cores=link.local_cores, ranks=link.local_size)
    pooled_histogram = [sum(counts) for counts in zip(*manifest.histograms, strict=True)]
    features = manifest.extractor_file(directory)
    extractors = read_extractors(
        link, config.evaluation, manifest.image_shape, features, torch_device
    )
    if heldout is None or not extractors:
        missing = "held-out images" if extractors else "feature extractor"
        raise AgreedError(
            f"{directory} has no {missing}, but scores need held-out images and an extractor"
        )
    pair = link.on_every_rank(
        lambda: build_networks(
            config, manifest.image_shape, torch_device, histogram=pooled_histogram
        )
    )
    return OpenRun(
        config=config,
        pair=pair,
        extractors=extractors,
        real=RealImages(
            shards=local_shards,
            images=manifest.images,
            heldout=heldout,
            heldout_everywhere=True,
            directory=directory,
            sha256=manifest.sha256,
        ),
        heldout=heldout,
        dtype=manifest.dtype,
        classes=len(pooled_histogram),
        features=features,
    )


def read_generator(link: Link, pair: NetworkPair, path: Path) -> Tensor:
    """Return G's parameters and BatchNorm statistics as one vector, on every rank. Collective.

    path: a checkpoint directory or a .safetensors file. From a checkpoint, the moving average is
    read if there is one. Raises AgreedError if the file is damaged or of other networks.
    """
    generator = torch.zeros_like(pair.flat.whole_generator)

    def read() -> None:
        if path.is_dir():
            generator.copy_(read_generator_parameters(path, len(generator)))
            return
        try:
            pair.G.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError):
            raise UserError(
                f"{path} is damaged, or not a generator of the networks in config.toml"
            ) from None
        generator.copy_(pair.flat.whole_generator)

    link.from_server(read)
    link.broadcast_exact(generator)
    return generator


def _read_config(run: Path, evaluation: Mapping[str, Any], networks: str | None) -> Config:
    config = read_config(run / "config.toml")
    refuse_links(run)
    changes = {key: value for key, value in evaluation.items() if value is not None}
    metrics = changes.get("metrics", config.evaluation.metrics)
    table = config.evaluation.metric_options
    changes["metric_options"] = {name: table[name] for name in metrics if name in table}
    if "extractor" in changes and changes["extractor"] != config.evaluation.extractor:
        changes = {"extractor_options": {}, "imagenet_size": 224, **changes}
    model, training = config.model, config.training
    if networks is not None:
        model = dataclasses.replace(model, architecture=networks)
    loss = training.loss
    if loss and not plugins.is_built_in("training.loss", loss):  # not needed, so not loaded
        training = dataclasses.replace(training, loss="nonsaturating", loss_options={})
    return dataclasses.replace(
        config,
        evaluation=dataclasses.replace(config.evaluation, **changes),
        model=model,
        training=training,
    )


def _read_manifest(run: Path, directory: Path) -> Manifest:
    manifest = Manifest.read(directory)
    check_same_shards(run, manifest.sha256)
    return manifest


def _read_images(
    link: Link, config: Config, directory: Path, manifest: Manifest
) -> tuple[dict[int, Shard], Shard | None]:
    """Return this rank's part of the shards, and the held-out images."""
    devices = range(link.rank + 1, manifest.devices + 1, link.size)
    shards = read_shards(directory, manifest, devices, in_memory=False)
    return shards, read_heldout(config, directory, manifest)
