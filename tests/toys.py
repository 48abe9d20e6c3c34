"""Toy networks and shards for tests, and an algorithm on one rank built from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.checkpoint.packing import PackedState, restore, unpack
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Shard, union
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.nn.losses import LOSSES, Loss
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.overlap import Overlap
from fedgan_mpi.training.state import TrainState

NZ = 3
CLASSES = 3


class ToyGenerator(nn.Module):
    """Maps z (B, 3) to images (B, 1, 4, 4).

    Layers before BatchNorm have no bias: its gradient would be rounding noise.
    """

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
    """Adds a class-dependent shift to the output of a network."""

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
    """Return (G, D) in float64, with the same parameters on every rank and in the oracles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ToyGenerator(batchnorm).double(), ToyDiscriminator(batchnorm).double()


def toy_shards(sizes: list[int], same: bool = False) -> dict[int, Shard]:
    """Return {device: shard} with the given numbers of images. same: equal images everywhere."""
    shards = {}
    for device, size in enumerate(sizes, start=1):
        stream = np.random.default_rng(7 if same else 7 + device)
        images = stream.integers(0, 256, (size, 1, 4, 4), dtype=np.uint8)
        labels = stream.integers(0, CLASSES, size)
        path = Path(f"toy_{device}")
        shards[device] = Shard(path=path, images=images, labels=labels, sha256="")
    return shards


def toy_histogram(shard: Shard) -> list[int]:
    """Return the number of images of each class."""
    assert shard.labels is not None
    return np.bincount(shard.labels, minlength=CLASSES).tolist()


def toy_config(**changes: dict[str, Any]) -> Config:
    """Return a small float64 configuration with changes: toy_config(training={"rounds": 3})."""
    config = Config()
    name = changes.get("algorithm", {}).get("name", "ren")
    sets_generator_steps = name in ("fedgan", "fegan", "fess_gda", "mdgan", "uagan")
    is_mixture = name in ("uagan", "ensemble")
    small = {
        "training": {
            "precision": "float64",
            "batch_size": 4,
            "generator_batch_size": 5,
            "discriminator_steps": 2,
            "generator_lr": 2e-4,
            "discriminator_lr": 2e-4,
            "loss": "nonsaturating",
            **({} if sets_generator_steps else {"generator_steps": 1}),
        },
        "model": {"ema": 0.99, **({"discriminator_norm": "none"} if is_mixture else {})},
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
    """Return an algorithm on toy networks for this rank. shards: the shards of all devices."""
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
        loss=loss or LOSSES[config.training.loss_name],
        config=config,
        torch_device=torch_device,
        class_shares=pooled / pooled.sum() if config.model.conditional else None,
    )
    if config.algorithm.name == "centralized":
        hosted = {1: union(list(shards.values()), Path("all"))} if link.is_server else {}
        sizes, histograms = [sum(sizes)], [np.sum(histograms, 0).tolist()]
    else:
        hosted = {k: shards[k] for k in hosted_devices(len(shards), link.rank, link.device_ranks)}
    rank_state = build_rank_state(link, config, pair, hosted, sizes, histograms)
    return ALGORITHMS[config.algorithm.name](rank_state)


def play(
    algorithm: Algorithm, rounds: int, start: int = 0, images_seen: int = 0
) -> list[dict[str, Any]]:
    """Collective. Run rounds from round `start` and return their lines of `stats.jsonl`.

    images_seen: images drawn before `start`.
    """
    state, link = TrainState(images_seen=images_seen), algorithm.link
    before = list(link.subscribers)
    overlap = Overlap(algorithm)
    lines = [
        run_round(algorithm, t, state, overlap=lambda t=t: overlap.start_device(t + 1))
        for t in range(start, start + rounds)
    ]
    link.subscribers[:] = before
    return lines


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state after a round trip through the checkpoint format."""
    packed = PackedState(state)
    packed.fill(state)
    return restore(unpack(packed.content), state)


def vectors(algorithm: Algorithm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return copies of this rank's (θ, φ)."""
    flat = algorithm.flat
    return flat.theta.detach().clone(), flat.phi.detach().clone()
