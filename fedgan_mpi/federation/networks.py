"""The two networks of a rank: how they are built, and packed into one vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgan_mpi.config import Config
from fedgan_mpi.federation.device_images import to_device
from fedgan_mpi.federation.flat_parameters import FlatParameters, Player
from fedgan_mpi.nn.cuda_graphs import Recorder, make_recorder
from fedgan_mpi.nn.losses import LOSSES, Loss
from fedgan_mpi.nn.precision import Compute
from fedgan_mpi.nn.registry import build, initialize
from fedgan_mpi.nn.steps import Batch
from fedgan_mpi.random_streams import Purpose, torch_stream


@dataclass(kw_only=True)
class NetworkPair:
    """The two networks of a rank, as views of its vector."""

    G: nn.Module
    D: nn.Module
    nz: int
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    loss: Loss
    flat: FlatParameters
    class_shares: Tensor | None = None
    """Share of each class in all devices' data together, float64; None for unconditional
    networks."""
    recorder: Recorder | None = None
    """What records optimizer steps; None: they run as they are."""

    @property
    def torch_device(self) -> torch.device:
        return self.flat.vector.device

    def counters(self) -> list[Tensor]:
        """BatchNorm's counts of batches: integers, which stay out of the vector and never
        travel."""
        buffers = [*self.G.buffers(), *self.D.buffers()]
        return [buffer for buffer in buffers if not buffer.is_floating_point()]

    def noise(self, count: int, stream: torch.Generator) -> Batch:
        """z (count, nz) from N(0, 1) and, for conditional networks, classes by their shares; drawn
        on the CPU so that they do not depend on what computes."""
        z = torch.randn(count, self.nz, generator=stream, dtype=self.flat.vector.dtype)
        z = to_device(z, self.torch_device)
        if self.class_shares is None:
            return Batch(z)
        classes = self.class_shares.multinomial(count, replacement=True, generator=stream)
        return Batch(z, self.one_hot(classes))

    def fakes(self, z: Batch) -> Batch:
        """What G as it stands makes of noise; no gradient goes back to G."""
        with torch.no_grad():
            return Batch(z.through(self.G), z.classes)

    @contextmanager
    def generator(self, shown: Tensor) -> Iterator[None]:
        """G with these parameters and statistics, in evaluation mode; afterwards as it was."""
        vector = self.flat.whole_generator
        training = vector.clone()
        vector.copy_(shown)
        self.G.eval()
        yield
        self.G.train()
        vector.copy_(training)

    def one_hot(self, classes: Tensor) -> Tensor | None:
        """(B, classes) from int64 (B,); None for unconditional networks."""
        if self.class_shares is None:
            return None
        codes = nn.functional.one_hot(classes, len(self.class_shares)).to(self.flat.vector.dtype)
        return to_device(codes, self.torch_device)


def build_networks(
    config: Config,
    image_shape: tuple[int, int, int],
    torch_device: str = "cpu",
    *,
    histogram: Sequence[int] = (),
) -> NetworkPair:
    """The configured networks, with the start that the run's seed gives, in one vector.

    histogram: images of each class on all devices together; conditional networks draw by it.
    """
    stream = torch_stream(config.run.seed, Purpose.PARAMETERS)
    counts = torch.tensor(histogram, dtype=torch.float64)
    class_shares = counts / counts.sum() if config.model.conditional else None
    classes = 0 if class_shares is None else len(class_shares)
    G, D = build(config.model, image_shape, classes)
    for network in (G, D):
        initialize(network, config.model.initialization, stream)
    return pack_networks(
        G,
        D,
        nz=config.model.nz,
        image_shape=image_shape,
        loss=LOSSES[config.training.loss],
        config=config,
        torch_device=torch_device,
        class_shares=class_shares,
    )


def pack_networks(
    G: nn.Module,
    D: nn.Module,
    *,
    nz: int,
    image_shape: tuple[int, int, int],
    loss: Loss,
    config: Config,
    torch_device: str = "cpu",
    class_shares: Tensor | None = None,
) -> NetworkPair:
    """Place and cast two networks, then make them views of one vector."""
    dtype = getattr(torch, config.training.precision)
    G.to(torch_device, dtype).train()
    D.to(torch_device, dtype).train()
    training = config.training
    compute = Compute(autocast=training.autocast, memory_format=training.memory_format)
    for network in (G, D):
        compute.prepare(network)
    averaged: tuple[Player, ...] = ()
    if config.algorithm.moments == "averaged" and config.training.optimizer == "adam":
        averaged = ("G", "D") if config.algorithm.traits.devices_train_generator else ("D",)
    with_statistics = config.algorithm.statistics_rule != "local"
    flat = FlatParameters(G, D, with_statistics=with_statistics, with_moments_of=averaged)
    return NetworkPair(
        G=G,
        D=D,
        nz=nz,
        image_shape=image_shape,
        loss=loss,
        flat=flat,
        class_shares=class_shares,
        recorder=make_recorder(training.graphs, torch_device),
    )
