"""What one rank owns: networks in one vector, the devices it hosts, and the server's state on rank
0.

A device k owns what no other has: its shard, its random streams, its optimizer moments. Device k is
rank k; with fewer device ranks than devices, rank r hosts devices r, r + R, r + 2R, … one after the
other, on the same pair of networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedgan_mpi.cluster.flat import Flat
from fedgan_mpi.cluster.link import Link
from fedgan_mpi.cluster.participation import Participation
from fedgan_mpi.config import Config
from fedgan_mpi.learning.losses import LOSSES, Loss
from fedgan_mpi.learning.networks import build, initialize
from fedgan_mpi.learning.optimizers import make_optimizer
from fedgan_mpi.learning.steps import discriminator_step, generator_step
from fedgan_mpi.shards import Batches, Shard
from fedgan_mpi.streams import Purpose, torch_stream


@dataclass(kw_only=True)
class Pair:
    """The two networks of a rank, as views of its vector."""

    G: nn.Module
    D: nn.Module
    nz: int
    loss: Loss
    flat: Flat

    @property
    def torch_device(self) -> torch.device:
        return self.flat.vector.device

    def counters(self) -> list[Tensor]:
        """BatchNorm's counts of batches: integers, which stay out of the vector and never
        travel."""
        buffers = [*self.G.buffers(), *self.D.buffers()]
        return [buffer for buffer in buffers if not buffer.is_floating_point()]

    def noise(self, count: int, stream: torch.Generator) -> Tensor:
        """z (count, nz) from N(0, 1), drawn on the CPU so that it does not depend on what
        computes."""
        z = torch.randn(count, self.nz, generator=stream, dtype=self.flat.vector.dtype)
        return z.to(self.torch_device)


class Device:
    """One of the K devices: its shard, streams and moments, and its steps on the rank's D."""

    def __init__(self, index: int, batches: Batches, pair: Pair, config: Config) -> None:
        self.index, self.batches, self.pair = index, batches, pair
        self.training = config.training
        self.moments = config.algorithm.moments
        flat = pair.flat
        averaged = flat.moments_of_discriminator if self.moments == "averaged" else None
        self.optimizer = make_optimizer(
            flat.phi,
            kind=self.training.optimizer,
            lr=self.training.discriminator_lr,
            betas=self.training.betas,
            moments=averaged,
        )
        self.noise_stream = torch_stream(config.run.seed, Purpose.FAKE, index)
        keeps_statistics = config.algorithm.batchnorm == "local"
        self.statistics = flat.statistics_of_discriminator.clone() if keeps_statistics else None

    def train_discriminator(self, t: int) -> float:
        """n_d steps from the φ that stands in the vector; it holds φ_k afterwards. Gives the mean
        loss."""
        flat, steps = self.pair.flat, self.training.discriminator_steps
        # Adam's moments stay with the device: only parameters are averaged, so a device that sat
        # out a round comes back with its own momentum. The other two are named choices.
        if self.moments == "reset":
            self.optimizer.reset()
        elif self.moments == "averaged":
            self.optimizer.set_steps(t * steps)
        if self.statistics is not None:
            flat.statistics_of_discriminator.copy_(self.statistics)

        loss = torch.zeros((), dtype=flat.vector.dtype, device=self.pair.torch_device)
        for _ in range(steps):
            real = self.real_batch()
            z = self.pair.noise(self.batches.size, self.noise_stream)
            pair = self.pair
            loss += discriminator_step(pair.G, pair.D, pair.loss, self.optimizer, real, z)

        if self.statistics is not None:
            self.statistics.copy_(flat.statistics_of_discriminator)
        return float(loss) / steps if steps else math.nan

    def real_batch(self) -> Tensor:
        """The next real images, (B, C, H, W) in [-1, 1]."""
        pixels = torch.from_numpy(self.batches.draw()).to(self.pair.torch_device)
        return pixels.to(self.pair.flat.vector.dtype).mul_(2 / 255).sub_(1)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must keep of this device."""
        state: dict[str, Any] = {
            "drawn": self.batches.drawn,
            "noise_stream": self.noise_stream.get_state(),
            "moments": self.optimizer.state(),
        }
        if self.statistics is not None:
            state["statistics"] = self.statistics
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.drawn = state["drawn"]
        self.noise_stream.set_state(state["noise_stream"])
        self.optimizer.load_state(state["moments"])
        if self.statistics is not None:
            self.statistics.copy_(state["statistics"])


class Server:
    """The server's state: G's optimizer and the noise it trains with."""

    def __init__(self, pair: Pair, config: Config) -> None:
        self.pair, self.training = pair, config.training
        self.optimizer = make_optimizer(
            pair.flat.theta,
            kind=self.training.optimizer,
            lr=self.training.generator_lr,
            betas=self.training.betas,
        )
        self.noise_stream = torch_stream(config.run.seed, Purpose.FAKE, 0)
        self.ema = config.model.ema
        self.average = pair.flat.whole_generator.clone() if self.ema else None
        """G's exponential moving average, with its BatchNorm statistics."""

    def train_generator(self) -> float:
        """n_g steps of θ against the φ that stands in the vector. Gives the mean loss."""
        pair, steps = self.pair, self.training.generator_steps
        loss = torch.zeros((), dtype=pair.flat.vector.dtype, device=pair.torch_device)
        for _ in range(steps):
            z = pair.noise(self.training.generator_batch_size, self.noise_stream)
            loss += generator_step(pair.G, pair.D, pair.loss, self.optimizer, z)
            if self.average is not None:
                self.average.lerp_(pair.flat.whole_generator, 1 - self.ema)
        return float(loss) / steps if steps else math.nan

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "vector": self.pair.flat.vector,
            "counters": self.pair.counters(),
            "noise_stream": self.noise_stream.get_state(),
            "moments": self.optimizer.state(),
        }
        if self.average is not None:
            state["average"] = self.average
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.pair.flat.vector.copy_(state["vector"])
        for counter, saved in zip(self.pair.counters(), state["counters"], strict=True):
            counter.copy_(saved)
        self.noise_stream.set_state(state["noise_stream"])
        self.optimizer.load_state(state["moments"])
        if self.average is not None:
            self.average.copy_(state["average"])


@dataclass(kw_only=True)
class Node:
    """One rank: its end of the link, its pair of networks, and whom it plays."""

    link: Link
    config: Config
    pair: Pair
    devices: list[Device]
    """Those this rank hosts; none on the server, except where an algorithm trains in one
    process."""
    server: Server | None
    participation: Participation
    batch_sizes: list[int] = field(default_factory=list)
    """Of device 1, 2, …: a device with few images has smaller batches."""

    @contextmanager
    def shown_generator(self) -> Iterator[None]:
        """G as it is scored and exported: in evaluation mode, and on the server its moving average
        where one is kept. Afterwards the server trains on as if nothing had been shown."""
        vector = self.pair.flat.whole_generator
        average = self.server.average if self.server is not None else None
        training = vector.clone() if average is not None else None
        if average is not None:
            vector.copy_(average)
        self.pair.G.eval()
        yield
        self.pair.G.train()
        if training is not None:
            vector.copy_(training)


def build_pair(
    config: Config, image_shape: tuple[int, int, int], torch_device: str = "cpu"
) -> Pair:
    """The configured networks, with the start that the run's seed gives, in one vector."""
    stream = torch_stream(config.run.seed, Purpose.PARAMETERS)
    G, D = build(config.model, image_shape)
    for network in (G, D):
        initialize(network, config.model.initialization, stream)
    loss = LOSSES[config.training.loss]
    return pack_pair(G, D, nz=config.model.nz, loss=loss, config=config, torch_device=torch_device)


def pack_pair(
    G: nn.Module, D: nn.Module, *, nz: int, loss: Loss, config: Config, torch_device: str = "cpu"
) -> Pair:
    """Place and cast two networks, then make them views of one vector."""
    dtype = getattr(torch, config.training.precision)
    G.to(torch_device, dtype).train()
    D.to(torch_device, dtype).train()
    moments = config.algorithm.moments == "averaged" and config.training.optimizer == "adam"
    flat = Flat(
        G,
        D,
        with_statistics=config.algorithm.batchnorm != "local",
        with_moments_of_discriminator=moments,
    )
    return Pair(G=G, D=D, nz=nz, loss=loss, flat=flat)


def build_node(
    link: Link, config: Config, pair: Pair, shards: dict[int, Shard], images: Sequence[int]
) -> Node:
    """A rank's node. shards: of the devices hosted here; images: of device 1, 2, … anywhere.

    Raises AgreedError where the ranks' vectors differ in length.
    """
    batch_sizes = [min(config.training.batch_size, n) for n in images]
    participation = Participation(
        config.participation,
        images=images,
        batch_sizes=batch_sizes,
        shares=config.algorithm.shares,
        seed=config.run.seed,
    )
    devices = []
    for index, shard in shards.items():
        batches = Batches(
            shard, batch_size=config.training.batch_size, seed=config.run.seed, device=index
        )
        devices.append(Device(index, batches, pair, config))
    server = Server(pair, config) if link.is_server else None
    link.check_lengths(pair.flat.gan, pair.flat.discriminator)
    return Node(
        link=link,
        config=config,
        pair=pair,
        devices=devices,
        server=server,
        participation=participation,
        batch_sizes=batch_sizes,
    )
