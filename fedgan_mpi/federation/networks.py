"""The two networks of a rank: their construction, and their place in one vector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgan_mpi.comm.transfers import Kind
from fedgan_mpi.config import Config, choose_by_size
from fedgan_mpi.config.training import Regularizer
from fedgan_mpi.federation.device_images import to_device
from fedgan_mpi.federation.flat_parameters import FlatParameters, Player
from fedgan_mpi.nn.adaptive import AdaptiveProbability
from fedgan_mpi.nn.augment import (
    Augmentations,
    AugmentedDiscriminator,
    check_augmentations,
    make_augmentations,
)
from fedgan_mpi.nn.cuda_graphs import Recorder, make_recorder
from fedgan_mpi.nn.freezing import freeze_layers
from fedgan_mpi.nn.losses import Loss, make_loss, scale_discriminator
from fedgan_mpi.nn.precision import prepare_network
from fedgan_mpi.nn.registry import build, initialize
from fedgan_mpi.nn.regularizers import LeCam
from fedgan_mpi.nn.steps import Batch
from fedgan_mpi.random_streams import Purpose, torch_stream


@dataclass(kw_only=True)
class NetworkPair:
    """G and D as views of one vector."""

    G: nn.Module
    D: nn.Module
    nz: int
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    loss: Loss
    flat: FlatParameters
    class_shares: Tensor | None = None
    """Share of each class in the data of all devices, float64; None for unconditional networks."""
    recorder: Recorder | None = None
    """Records optimizer steps as CUDA graphs; None: steps run eagerly."""
    regularizer: Regularizer
    """Of D."""
    lecam: LeCam | None = None
    """The regularization whose anchors belong to the device that trains."""
    augmentations: Augmentations | None = None
    adaptive: AdaptiveProbability | None = None
    """Sets the probability of the augmentations; None if it is 1."""

    @property
    def classes(self) -> int:
        """Number of classes; 0 for unconditional networks."""
        return 0 if self.class_shares is None else len(self.class_shares)

    @property
    def critic(self) -> nn.Module:
        """D behind the augmentations if there are any, as optimizer steps use it."""
        if self.augmentations is None:
            return self.D
        return AugmentedDiscriminator(self.D, self.augmentations)

    @property
    def torch_device(self) -> torch.device:
        return self.flat.vector.device

    def counters(self) -> list[Tensor]:
        """Return BatchNorm's counters of batches: integers, which are not in the vector and are
        never sent."""
        buffers = [*self.G.buffers(), *self.D.buffers()]
        return [buffer for buffer in buffers if not buffer.is_floating_point()]

    def noise(self, count: int, stream: torch.Generator) -> Batch:
        """Draw z (count, nz) from N(0, 1) and, for conditional networks, classes by their shares.

        The numbers are drawn on the CPU, so that they do not depend on the torch device.
        """
        z = torch.randn(count, self.nz, generator=stream, dtype=self.flat.vector.dtype)
        z = to_device(z, self.torch_device)
        if self.class_shares is None:
            return Batch(z)
        classes = self.class_shares.multinomial(count, replacement=True, generator=stream)
        return Batch(z, self.one_hot(classes))

    def fakes(self, z: Batch) -> Batch:
        """Generate images from noise, without a graph for gradients of G."""
        with torch.no_grad():
            return z.generate(self.G)

    @contextmanager
    def generator(self, parameters: Tensor) -> Iterator[None]:
        """Have other parameters and statistics in G, in evaluation mode, inside the block.

        parameters: of the length of the vector's generator section. G is restored afterwards.
        """
        vector = self.flat.whole_generator
        training = vector.clone()
        vector.copy_(parameters)
        self.G.eval()
        yield
        self.G.train()
        vector.copy_(training)

    def one_hot(self, classes: Tensor) -> Tensor | None:
        """Encode classes (B,), int64, as (B, classes); None for unconditional networks."""
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
    """Build the configured networks, initialized from the run's seed, in one vector.

    histogram: images of each class on all devices together; conditional noise is drawn by it.
    """
    config = choose_by_size(config, image_shape)
    stream = torch_stream(config.run.seed, Purpose.PARAMETERS)
    counts = torch.tensor(histogram, dtype=torch.float64)
    class_shares = counts / counts.sum() if config.model.conditional else None
    classes = 0 if class_shares is None else len(class_shares)
    G, D = build(config.model, image_shape, classes, config.run.seed)
    if config.model.is_built_in:
        for network in (G, D):
            initialize(network, config.model.initialization_rule, stream)
    return pack_networks(
        G,
        D,
        nz=config.model.nz,
        image_shape=image_shape,
        loss=make_loss(config.training.loss_name, config.training.loss_options),
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
    """Move and cast two networks, then make them views of one vector."""
    freeze_layers(D, config.training.freeze_discriminator)
    dtype = getattr(torch, config.training.precision)
    G.to(torch_device, dtype).train()
    D.to(torch_device, dtype).train()
    training = config.training
    for network in (G, D):
        prepare_network(network, autocast=training.autocast, memory_format=training.memory_format)
    averaged: tuple[Player, ...] = ()
    if config.algorithm.moments == "averaged" and config.training.optimizer == "adam":
        averaged = ("G", "D") if config.algorithm.traits.devices_train_generator else ("D",)
    with_statistics = config.algorithm.statistics_rule != "local"
    controls: tuple[Player, ...] = ()
    if config.algorithm.control_variates:
        controls = ("G", "D") if config.algorithm.traits.devices_train_generator else ("D",)
    flat = FlatParameters(
        G,
        D,
        with_statistics=with_statistics,
        with_moments_of=averaged,
        with_controls_of=controls,
    )
    regularizer = config.regularizer(loss.has_penalty)
    if config.algorithm.preset == "ua_gan":
        loss = scale_discriminator(loss, 0.1)
    lecam = LeCam(regularizer.weight, flat.vector) if regularizer.name == "lecam" else None
    loss = loss if lecam is None else lecam.apply(loss)
    adaptive = probability = None
    if training.augment_target > 0:
        adaptive = AdaptiveProbability(
            training.augment_target, training.augment_images, like=flat.vector
        )
        loss, probability = adaptive.watch(loss), adaptive.probability
    augment = training.augment
    augmentations = make_augmentations(augment, training.augment_options, probability)
    if augmentations is not None:
        check_augmentations(augment, augmentations, image_shape)
    return NetworkPair(
        G=G,
        D=D,
        nz=nz,
        image_shape=image_shape,
        loss=loss,
        flat=flat,
        class_shares=class_shares,
        recorder=make_recorder(training.graphs, torch_device),
        regularizer=regularizer,
        lecam=lecam,
        augmentations=augmentations,
        adaptive=adaptive,
    )


def vector_lengths(config: Config, pair: NetworkPair) -> dict[Kind, int]:
    """Return how many numbers the vectors of a round have, for each kind of transfer."""
    traits, flat = config.algorithm.traits, pair.flat
    if traits.exchanges_images:
        images = config.training.batch_size * math.prod(pair.image_shape)
        return {"down": images, "point_to_point": images}
    upload = len(flat.gan if traits.devices_train_generator else flat.discriminator)
    return {"down": len(flat.gan), "sum": upload, "point_to_point": upload}
