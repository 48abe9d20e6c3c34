"""Starts a new run from the networks of another run (`training.start`).

The configuration of the new run alone determines the networks. Files of the other run contribute
numbers, and never choose what code runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgan_mpi.checkpoint.format import (
    MANIFEST,
    SERVER,
    CheckpointManifest,
    checkpoints_of,
    device_file,
    read_manifest,
    read_tensors,
)
from fedgan_mpi.checkpoint.stored_networks import (
    OtherNetworksError,
    StoredNetworks,
    check_same_model,
    read_generator_state,
    unpack_discriminator,
    unpack_networks,
)
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.files import sha256_of
from fedgan_mpi.nn.registry import build
from fedgan_mpi.report.device_data import read_device_data
from fedgan_mpi.run.generator_about import read_about, shape_of

_KEY = "training.start"
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The networks from which a run starts, found and checked."""

    path: Path
    """A checkpoint's directory, or a generator's file."""
    checkpoint: CheckpointManifest | None
    """None for a generator's file."""
    keeps_discriminators: bool
    """Whether each device of the other run had a D of its own."""
    round: int
    sha256: str
    """Of the generator's file, or of the server's state."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Return the entry of config.toml."""
        return {"path": str(self.path.resolve()), "round": self.round, "sha256": self.sha256}


def find_start(config: Config, image_shape: Shape, classes: int, devices: int) -> Start:
    """Find and check the networks of `training.start`.

    classes: of the data; 0 without labels. devices: number of devices of this run. Raises UserError
    if the files are missing or damaged, or if they hold other networks.
    """
    given = Path(config.training.start or "")
    path = given.parent if given.name == SERVER else given
    try:
        if path.is_dir():
            start = _find_checkpoint(config, path, image_shape, classes, devices)
        elif path.is_file():
            start = _find_generator(config, path, image_shape, classes)
        else:
            raise OtherNetworksError("there is no such file or directory")
        stored = _read(start, config, image_shape, classes if config.model.conditional else 0)
        states = (stored.generator, stored.discriminator or {})
        numbers = [each for state in states for each in state.values()]
        if not all(is_finite(each) for each in numbers):
            raise OtherNetworksError("its parameters are not finite")
    except OtherNetworksError as error:
        raise UserError(f"{_KEY} is {str(given)!r}, but {error}") from None
    return start


def _find_checkpoint(
    config: Config, path: Path, image_shape: Shape, classes: int, devices: int
) -> Start:
    is_run = not (path / MANIFEST).exists()
    checkpoints = checkpoints_of(path) if is_run else [path]
    if not checkpoints:
        raise OtherNetworksError(
            "it has no checkpoint; name its generator's file to start G without D"
        )
    manifest = read_manifest(checkpoints[-1])
    # A checkpoint is in the directory `checkpoints` of its run.
    data = read_device_data(path if is_run else path.absolute().parents[1])
    check_same_model(
        manifest.configuration.get("model", {}),
        None if data is None else data.image_shape,
        None if data is None else len(data.class_names),
        config.model,
        image_shape,
        classes,
    )
    name, traits = manifest.configuration.get("algorithm", {}).get("name"), config.algorithm.traits
    others = traits if name == config.algorithm.name else TRAITS.get(str(name))
    keeps = others is not None and others.devices_keep_discriminator
    count = sum(file.startswith("device_") for file in [*manifest.files, *manifest.lost])
    if keeps and not (traits.devices_keep_discriminator and devices == count):
        raise OtherNetworksError(
            f"each of its {count} devices kept its own D, and this run has {devices} devices and "
            f"the algorithm {config.algorithm.name}; name its generator's file to start G without D"
        )
    fixed = manifest.configuration.get("training", {}).get("freeze_discriminator", 0)
    if keeps and config.training.freeze_discriminator > fixed:
        raise OtherNetworksError(
            f"each device's D has its own first layers, so that training.freeze_discriminator must "
            f"be at most {fixed}"
        )
    if keeps and manifest.lost:
        raise OtherNetworksError("the D of a device is lost, because its rank had died")
    return Start(
        path=manifest.path,
        checkpoint=manifest,
        keeps_discriminators=keeps,
        round=manifest.round,
        sha256=dict(manifest.files.get(SERVER, {})).get("sha256", ""),
    )


def _find_generator(config: Config, path: Path, image_shape: Shape, classes: int) -> Start:
    about = read_about(path.with_suffix(".json"))
    shares = about.get("class_shares")
    stored = {"conditional": shares is not None, **about}
    # A description has no discriminator_norm, which concerns D alone.
    stored["discriminator_norm"] = config.model.discriminator_norm
    shape = shape_of(about)
    check_same_model(stored, shape, len(shares or ()), config.model, image_shape, classes)
    return Start(
        path=path,
        checkpoint=None,
        keeps_discriminators=False,
        round=about.get("round", 0),
        sha256=sha256_of(path),
    )


def _read(start: Start, config: Config, image_shape: Shape, classes: int) -> StoredNetworks:
    """classes: 0 for unconditional networks. Raises OtherNetworksError."""
    G, D = build(config.model, image_shape, classes, config.run.seed)
    if start.checkpoint is None:
        return read_generator_state(start.path, G)
    tensors = read_tensors(start.checkpoint, SERVER)
    return unpack_networks(tensors, start.checkpoint.configuration, G, D)


# -------------------------------------------------------------------- on every rank


def load_networks(link: Link, pair: NetworkPair, start: Start, config: Config) -> Tensor:
    """Overwrite the networks of every rank. Collective.

    Returns the moving average of G on the server, as a vector of parameters and statistics. Call
    it before devices and server copy the vector.
    """
    average = torch.zeros_like(pair.flat.whole_generator)

    def read() -> None:
        stored = _read(start, config, pair.image_shape, pair.classes)
        pair.G.load_state_dict(stored.average)
        average.copy_(pair.flat.whole_generator)
        pair.G.load_state_dict(stored.generator)
        if stored.discriminator is not None:
            pair.D.load_state_dict(stored.discriminator)

    link.from_server(read)
    link.broadcast_exact(pair.flat.vector)
    return average


def load_owners(rank_state: RankState, start: Start, average: Tensor) -> None:
    """Overwrite the server's moving average, and the discriminators that devices keep. Collective.

    Call it after the algorithm is made. average: a result of `load_networks`.
    """
    if rank_state.server is not None:
        rank_state.server.start_ema(average)
    if start.keeps_discriminators:
        rank_state.link.on_every_rank(lambda: _load_discriminators(rank_state, start))


def _load_discriminators(rank_state: RankState, start: Start) -> None:
    pair, checkpoint, config = rank_state.pair, start.checkpoint, rank_state.config
    assert checkpoint is not None
    vector, fixed = pair.flat.vector, read_tensors(checkpoint, SERVER)["vector"]
    before = vector.clone()
    places = [(device.index, device.local.own[0]) for device in rank_state.devices]
    kept = {} if rank_state.server is None else rank_state.server.kept
    for k in range(1, rank_state.participation.devices + 1):
        if (place := kept.get(f"discriminator_{k}")) is not None:  # of `ensemble`
            places.append((k, place))
    for k, place in places:
        tensors = read_tensors(checkpoint, device_file(k))
        networks = build(config.model, pair.image_shape, pair.classes, config.run.seed)
        try:
            stored = (tensors, fixed, checkpoint.configuration)
            pair.D.load_state_dict(unpack_discriminator(*stored, *networks))
        except OtherNetworksError as error:
            raise UserError(f"{_KEY} is {str(start.path)!r}, but {error}") from None
        place.copy_(pair.flat.whole_discriminator)
    vector.copy_(before)
