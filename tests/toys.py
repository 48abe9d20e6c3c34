"""Small networks and shards for tests, and the whole of a rank built from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.checkpoint.packing import PackedState, restore, unpack
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Shard, union
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.nn.losses import LOSSES, Loss
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.state import TrainState

NZ = 3
CLASSES = 3


class ToyGenerator(nn.Module):
    """z (B, 3) to images (B, 1, 4, 4). No bias before BatchNorm: its gradient is rounding noise."""

    def __init__(self, batchnorm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(NZ, 16, bias=not batchnorm)
        self.norm = nn.BatchNorm1d(16) if batchnorm else nn.Identity()

    def forward(self, z):
        return torch.tanh(self.norm(self.first(z))).view(-1, 1, 4, 4)


class ToyDiscriminator(nn.Module):
    def __init__(self, batchnorm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, 8, bias=not batchnorm)
        self.norm = nn.BatchNorm1d(8) if batchnorm else nn.Identity()
        self.last = nn.Linear(8, 1)

    def forward(self, images):
        hidden = nn.functional.leaky_relu(self.norm(self.first(images.flatten(1))), 0.2)
        return self.last(hidden).flatten()


class Conditional(nn.Module):
    """A toy whose output is shifted by the class."""

    def __init__(self, network: nn.Module, outputs: int) -> None:
        super().__init__()
        self.network, self.shift = network, nn.Linear(CLASSES, outputs, bias=False)

    def forward(self, x, classes):
        output = self.network(x)
        return output + 0.3 * torch.tanh(self.shift(classes)).view(len(x), *output.shape[1:])


def conditional_networks() -> tuple[nn.Module, nn.Module]:
    G, D = toy_networks(batchnorm=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Conditional(G, 16).double(), Conditional(D, 1).double()


def toy_networks(batchnorm: bool = True) -> tuple[nn.Module, nn.Module]:
    """The same start on every rank and in the oracle, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ToyGenerator(batchnorm).double(), ToyDiscriminator(batchnorm).double()


def toy_shards(sizes: list[int], same: bool = False) -> dict[int, Shard]:
    """Shards of device 1, 2, …; `same`: all hold the same images."""
    shards = {}
    for device, size in enumerate(sizes, start=1):
        stream = np.random.default_rng(7 if same else 7 + device)
        images = stream.integers(0, 256, (size, 1, 4, 4), dtype=np.uint8)
        labels = stream.integers(0, CLASSES, size)
        path = Path(f"toy_{device}")
        shards[device] = Shard(path=path, images=images, labels=labels, sha256="")
    return shards


def toy_histogram(shard: Shard) -> list[int]:
    """Images of each of three classes."""
    assert shard.labels is not None
    return np.bincount(shard.labels, minlength=CLASSES).tolist()


def toy_config(**changes: dict[str, Any]) -> Config:
    """Float64 and small, with sections changed: toy_config(training={"rounds": 3})."""
    config = Config()
    name = changes.get("algorithm", {}).get("name", "ren")
    own_steps = name in ("fedgan", "fegan", "mdgan", "uagan")  # say themselves how often G steps
    small = {
        "training": {
            "precision": "float64",
            "batch_size": 4,
            "generator_batch_size": 5,
            "discriminator_steps": 2,
            **({} if own_steps else {"generator_steps": 1}),
        },
        "link": {"wire_dtype": "float64"},
    }
    sections = {}
    for section in {*small, *changes}:
        values = {**small.get(section, {}), **changes.get(section, {})}
        sections[section] = replace(getattr(config, section), **values)
    return replace(config, **sections)


def toy_algorithm(
    link: Link,
    config: Config,
    shards: dict[int, Shard],
    *,
    batchnorm: bool = True,
    networks: tuple[nn.Module, nn.Module] | None = None,
    loss: Loss | None = None,
    nz: int = NZ,
    torch_device: str = "cpu",
) -> Algorithm:
    """This rank's part of an algorithm on toys; `shards` are those of all devices."""
    link.configure(config.link)
    if torch_device != "cpu":
        link.choose_route(torch_device)
    G, D = networks or toy_networks(batchnorm)
    first = shards[1].images.shape
    sizes = [len(shard) for shard in shards.values()]
    histograms = [toy_histogram(shard) for shard in shards.values()]
    pooled = torch.tensor(histograms, dtype=torch.float64).sum(0)
    pair = pack_networks(
        G,
        D,
        nz=nz,
        image_shape=(first[1], first[2], first[3]),
        loss=loss or LOSSES[config.training.loss],
        config=config,
        torch_device=torch_device,
        class_shares=pooled / pooled.sum() if config.model.conditional else None,
    )
    if config.algorithm.name == "centralized":
        mine = {1: union(list(shards.values()), Path("all"))} if link.is_server else {}
        sizes, histograms = [sum(sizes)], [np.sum(histograms, 0).tolist()]
    else:
        mine = {k: shards[k] for k in hosted_devices(len(shards), link)}
    rank_state = build_rank_state(link, config, pair, mine, sizes, histograms)
    return ALGORITHMS[config.algorithm.name](rank_state)


def play(
    algorithm: Algorithm, rounds: int, start: int = 0, images_seen: int = 0
) -> list[dict[str, Any]]:
    """Collective. So many rounds; their lines of stats.jsonl. images_seen: before them."""
    progress = TrainState(images_seen=images_seen)
    with algorithm.cores.held():
        return [run_round(algorithm, t, progress) for t in range(start, start + rounds)]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    packed = PackedState(state)
    packed.fill(state)
    return restore(unpack(packed.content), state)


def vectors(algorithm: Algorithm) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of (θ, φ) as they stand on this rank."""
    flat = algorithm.flat
    return flat.theta.detach().clone(), flat.phi.detach().clone()
