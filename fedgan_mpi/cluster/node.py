"""What one rank owns: networks in one vector, the devices it hosts, and the server's state on rank
0.

A device k owns what no other has: its shard, its random streams, its optimizer moments. Device k is
rank k; with fewer device ranks than devices, rank r hosts devices r, r + R, r + 2R, … one after the
other, on the same pair of networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgan_mpi.cluster.flat import Flat, Player, is_finite
from fedgan_mpi.cluster.images import Images, to_device
from fedgan_mpi.cluster.link import Link
from fedgan_mpi.cluster.participation import Participation
from fedgan_mpi.config import Config
from fedgan_mpi.learning.compute import Compute
from fedgan_mpi.learning.graphs import Recorder, Step, make_recorder
from fedgan_mpi.learning.losses import LOSSES, Loss
from fedgan_mpi.learning.networks import build, initialize
from fedgan_mpi.learning.optimizers import Optimizer, make_optimizer
from fedgan_mpi.learning.steps import (
    Batch,
    Penalty,
    discriminator_half_step,
    discriminator_other_half,
    discriminator_step,
    generator_step,
    simultaneous_step,
)
from fedgan_mpi.shards import Batches, Shard
from fedgan_mpi.streams import Purpose, torch_stream


@dataclass(kw_only=True)
class Pair:
    """The two networks of a rank, as views of its vector."""

    G: nn.Module
    D: nn.Module
    nz: int
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    loss: Loss
    flat: Flat
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


class Device:
    """One of the K devices: its shard, streams and moments, and its steps on the rank's
    networks."""

    def __init__(self, index: int, batches: Batches, pair: Pair, config: Config) -> None:
        self.index, self.batches, self.pair = index, batches, pair
        self.images = Images(batches.shard, pair.flat.vector)
        self.training, self._may_undo = config.training, config.skips_non_finite
        self.moments = config.algorithm.moments
        flat = pair.flat
        self.optimizer = self._make_optimizer(flat.phi, flat.moments_of_discriminator)
        self.noise_stream = torch_stream(config.run.seed, Purpose.FAKE, index)
        self._own: list[tuple[Tensor, Tensor]] = []
        self._before: tuple[list[dict[str, Any]], list[Tensor]] = [], []
        self._begun: tuple[Batch, Tensor] | None = None
        self.half_step = Step(self._half, pair.recorder)
        self.other_half = Step(self._rest, pair.recorder)
        self.step_against = Step(self._against, pair.recorder)
        self.step_of_both = Step(self._of_both, pair.recorder)
        self.step_of_generator = Step(self._of_generator, pair.recorder)
        self.optimizer_of_generator: Optimizer | None = None
        self.residual: Tensor | None = None
        """What rounding took from its uplinks and is still to be sent."""
        if config.link.error_feedback:
            travels = flat.gan if config.algorithm.devices_train_generator else flat.discriminator
            self.residual = torch.zeros_like(travels)
        if config.algorithm.statistics_rule == "local":
            self.keep(flat.statistics_of_discriminator)
        if config.algorithm.devices_keep_discriminator:
            self.keep(flat.whole_discriminator)
        if config.algorithm.devices_train_generator:
            self.optimizer_of_generator = self._make_optimizer(
                flat.theta, flat.moments_of_generator
            )
            if config.algorithm.statistics_rule == "local":
                self.keep(flat.statistics_of_generator)

    def keep(self, section: Tensor) -> None:
        """From now on a section of the rank's vector is this device's own, and comes back whenever
        it works."""
        self._own.append((section, section.clone()))

    @property
    def own(self) -> list[Tensor]:
        """What `keep` was called for, as the device left it."""
        return [mine for _, mine in self._own]

    # ---------------------------------------------------------------- a participant's work

    @contextmanager
    def at_work(self, steps_before: int = 0) -> Iterator[None]:
        """Lay the device's own sections into the vector, and take them back afterwards.

        steps_before: optimizer steps that averaged moments sum up.
        """
        self._come(steps_before)
        yield
        self._leave()

    def _come(self, steps_before: int) -> None:
        if self._may_undo:
            self._before = deepcopy((self._moments(), self.own))
        for section, mine in self._own:
            section.copy_(mine)
        # Adam's moments stay with the device: only parameters are averaged, so a device that sat
        # out a round comes back with its own momentum. The other two are named choices.
        for optimizer in self._optimizers():
            if self.moments == "reset":
                optimizer.reset()
            elif self.moments == "averaged":
                optimizer.set_steps(steps_before)

    def _leave(self) -> None:
        for section, mine in self._own:
            mine.copy_(section)

    def undo(self) -> None:
        """Have moments and own sections as before the work just done. The streams have moved on, so
        that the next try is another."""
        self._load(*self._before)

    def look_ahead(self, t: int) -> None:
        """Begin round t: do what its first step can before there are fakes, on the φ that stands in
        the vector. Until `train_discriminator` goes on, nothing has happened that a checkpoint
        would keep."""
        if self.training.discriminator_steps > 0:
            self._come(t * self.training.discriminator_steps)
            real = self.real_batch()
            self.batches.drawn -= self.batches.size  # only looked at
            self._begun = real, self.half_step(*real)[0]

    @property
    def has_begun(self) -> bool:
        """Whether the rank's vector holds the first half of this device's round."""
        return self._begun is not None

    def forget(self) -> None:
        """Do not go on from what `look_ahead` began."""
        self._begun = None

    def train_discriminator(self, t: int) -> float | None:
        """n_d steps from the φ that stands in the vector; it holds φ_k afterwards. Gives the mean
        loss, None for no steps."""
        steps = self.training.discriminator_steps
        if steps == 0:
            return None
        if self._begun is None:
            self.look_ahead(t)
        assert self._begun is not None
        (real, loss), self._begun = self._begun, None
        self.batches.drawn += self.batches.size
        loss = loss + self.other_half(*real, *self.noise(), self.mix())[0]
        for _ in range(steps - 1):
            loss += self.discriminator_step(self.real_batch(), self.noise())
        self._leave()
        return float(loss) / steps

    def train_against(self, fake: Batch) -> float | None:
        """n_d steps of the device's D on one batch of real images and the given fakes. Gives the
        mean loss, None for no steps. Call it `at_work`."""
        steps = self.training.discriminator_steps
        loss, real = self._zero(), self.real_batch()
        for _ in range(steps):
            loss += self.step_against(*real, *fake, self.mix())[0]
        return float(loss) / steps if steps else None

    def train_both(
        self, t: int, steps: int, update: Literal["simultaneous", "alternating"]
    ) -> tuple[float | None, float | None]:
        """So many steps of both networks from where they stand in the vector. Gives the mean losses
        of D and of G, None for no steps."""
        d_loss, g_loss = self._zero(), self._zero()
        with self.at_work(t * steps):
            for _ in range(steps):
                real, z = self.real_batch(), self.noise()
                if update == "simultaneous":
                    losses = self.step_of_both(*real, *z, self.mix())
                    d_loss += losses[0]
                    g_loss += losses[1]
                else:
                    d_loss += self.discriminator_step(real, z)
                    g_loss += self.step_of_generator(*self.noise())[0]
        return (float(d_loss) / steps, float(g_loss) / steps) if steps else (None, None)

    def discriminator_step(self, real: Batch, z: Batch) -> Tensor:
        """One step of D on real images and on fakes from noise; gives its loss."""
        (loss,) = self.half_step(*real)
        return loss + self.other_half(*real, *z, self.mix())[0]

    # What is recorded where steps are: tensors in, losses out.

    def _half(self, real: Tensor, classes: Tensor | None) -> tuple[Tensor]:
        pair, batch = self.pair, Batch(real, classes)
        return (discriminator_half_step(pair.D, pair.loss, self.optimizer, batch),)

    def _rest(
        self,
        real: Tensor,
        real_classes: Tensor | None,
        z: Tensor,
        classes: Tensor | None,
        mix: Tensor | None,
    ) -> tuple[Tensor]:
        pair, real_batch = self.pair, Batch(real, real_classes)
        fake, penalty = pair.fakes(Batch(z, classes)), self._penalty(mix)
        value = discriminator_other_half(
            pair.D, pair.loss, self.optimizer, real_batch, fake, penalty
        )
        return (value,)

    def _against(
        self,
        real: Tensor,
        real_classes: Tensor | None,
        fake: Tensor,
        classes: Tensor | None,
        mix: Tensor | None,
    ) -> tuple[Tensor]:
        pair, batches = self.pair, (Batch(real, real_classes), Batch(fake, classes))
        penalty = self._penalty(mix)
        return (discriminator_step(pair.D, pair.loss, self.optimizer, *batches, penalty),)

    def _of_both(
        self,
        real: Tensor,
        real_classes: Tensor | None,
        z: Tensor,
        classes: Tensor | None,
        mix: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        assert self.optimizer_of_generator is not None
        pair, batches = self.pair, (Batch(real, real_classes), Batch(z, classes))
        optimizers = (self.optimizer_of_generator, self.optimizer)
        penalty = self._penalty(mix)
        return simultaneous_step(pair.G, pair.D, pair.loss, *optimizers, *batches, penalty)

    def _of_generator(self, z: Tensor, classes: Tensor | None) -> tuple[Tensor]:
        assert self.optimizer_of_generator is not None
        pair, optimizer = self.pair, self.optimizer_of_generator
        return (generator_step(pair.G, pair.D, pair.loss, optimizer, Batch(z, classes)),)

    def real_batch(self) -> Batch:
        """The next real images, (B, C, H, W) in [-1, 1]."""
        shard, indices = self.batches.shard, self.batches.next()
        images = self.images.batch(indices)
        if self.pair.class_shares is None:
            return Batch(images)
        assert shard.labels is not None
        return Batch(images, self.pair.one_hot(torch.from_numpy(shard.labels[indices])))

    def noise(self) -> Batch:
        """As much noise as a batch has real images."""
        return self.pair.noise(self.batches.size, self.noise_stream)

    def mix(self) -> Tensor | None:
        """A gradient penalty's ε; None for losses without one."""
        if not self.pair.loss.has_penalty:
            return None
        dtype = self.pair.flat.vector.dtype
        mix = torch.rand(self.batches.size, 1, 1, 1, generator=self.noise_stream, dtype=dtype)
        return to_device(mix, self.pair.torch_device)

    def _penalty(self, mix: Tensor | None) -> Penalty | None:
        return None if mix is None else Penalty(self.training.gradient_penalty, mix)

    def _make_optimizer(self, parameters: nn.Parameter, averaged: Tensor) -> Optimizer:
        of_generator = parameters is self.pair.flat.theta
        training = self.training
        return make_optimizer(
            parameters,
            kind=training.optimizer,
            lr=training.generator_lr if of_generator else training.discriminator_lr,
            betas=training.betas,
            moments=averaged if self.moments == "averaged" else None,
        )

    def _optimizers(self) -> list[Optimizer]:
        both = (self.optimizer, self.optimizer_of_generator)
        return [optimizer for optimizer in both if optimizer is not None]

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=self.pair.flat.vector.dtype, device=self.pair.torch_device)

    # ---------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must keep of this device."""
        return {
            "drawn": self.batches.drawn,
            "noise_stream": self.noise_stream.get_state(),
            "moments": self._moments(),
            "own": self.own,
            **_kept(residual=self.residual),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.forget()
        self.batches.drawn = state["drawn"]
        self.noise_stream.set_state(state["noise_stream"])
        self._load(state["moments"], state["own"])
        if self.residual is not None:
            self.residual.copy_(state["residual"])

    def _moments(self) -> list[dict[str, Any]]:
        return [optimizer.state() for optimizer in self._optimizers()]

    def _load(self, moments: list[dict[str, Any]], own: list[Tensor]) -> None:
        for optimizer, saved in zip(self._optimizers(), moments, strict=True):
            optimizer.load_state(saved)
        for mine, theirs in zip(self.own, own, strict=True):
            mine.copy_(theirs)


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
        self.step_of_generator = Step(self._of_generator, pair.recorder)
        self.ema = config.model.ema
        self.average = pair.flat.whole_generator.clone() if self.ema else None
        """G's exponential moving average, with its BatchNorm statistics."""
        feeds_back = config.link.error_feedback
        self.residual = torch.zeros_like(pair.flat.vector) if feeds_back else None
        """What rounding took from its downlinks and is still to be sent."""

    def train_generator(self) -> float | None:
        """n_g steps of θ against the φ that stands in the vector. Gives the mean loss, None for no
        steps.

        D is as it was afterwards, its statistics too: so it can go down before G has trained.
        """
        pair, steps = self.pair, self.training.server_steps
        statistics = pair.flat.statistics_of_discriminator
        before = statistics.clone()
        loss = torch.zeros((), dtype=pair.flat.vector.dtype, device=pair.torch_device)
        for _ in range(steps):
            z = pair.noise(self.training.generator_batch_size, self.noise_stream)
            loss += self.step_of_generator(*z)[0]
            self.follow()
        statistics.copy_(before)
        return float(loss) / steps if steps else None

    def _of_generator(self, z: Tensor, classes: Tensor | None) -> tuple[Tensor]:
        pair = self.pair
        return (generator_step(pair.G, pair.D, pair.loss, self.optimizer, Batch(z, classes)),)

    def make_fakes(self, count: int) -> Batch:
        """Fakes from fresh noise, with the graph through which `descend` goes back."""
        z = self.pair.noise(count, self.noise_stream)
        return Batch(z.through(self.pair.G), z.classes)

    def descend(self, fakes: Sequence[Batch], gradients: Sequence[Tensor]) -> None:
        """One step of θ down a loss whose gradients with respect to batches of fakes are given."""
        self.optimizer.zero_gradient()
        torch.autograd.backward([fake.data for fake in fakes], list(gradients))
        self.optimizer.step()
        self.follow()

    def follow(self, steps: int = 1) -> None:
        """Move G's average after so many steps that G took, wherever it took them."""
        if self.average is not None:
            self.average.lerp_(self.pair.flat.whole_generator, 1 - self.ema**steps)

    def state(self) -> dict[str, Any]:
        return {
            "vector": self.pair.flat.vector,
            "counters": self.pair.counters(),
            "noise_stream": self.noise_stream.get_state(),
            "moments": self.optimizer.state(),
            **_kept(average=self.average, residual=self.residual),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.pair.flat.vector.copy_(state["vector"])
        for counter, saved in zip(self.pair.counters(), state["counters"], strict=True):
            counter.copy_(saved)
        self.noise_stream.set_state(state["noise_stream"])
        self.optimizer.load_state(state["moments"])
        if self.average is not None:
            self.average.copy_(state["average"])
        if self.residual is not None:
            self.residual.copy_(state["residual"])


def _kept(**optional: Tensor | None) -> dict[str, Tensor]:
    """What there is of it, for a checkpoint."""
    return {name: value for name, value in optional.items() if value is not None}


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

    @property
    def owners(self) -> list[Device | Server]:
        """Those whose state this rank keeps."""
        return [*self.devices, *([] if self.server is None else [self.server])]

    @property
    def images_drawn(self) -> int:
        """Real images that devices hosted here have drawn."""
        return sum(device.batches.drawn for device in self.devices)

    def is_finite(self, t: int) -> bool:
        """Whether round t left such networks here: the server's, and those that participants keep
        for themselves."""
        present = self.participation.participants(t)
        held = [] if self.server is None else [self.pair.flat.vector]
        held += [mine for device in self.devices if device.index in present for mine in device.own]
        return all(is_finite(vector) for vector in held)

    @property
    def shown_generator(self) -> Tensor:
        """G as it is scored and exported, parameters and statistics in one vector: on the server
        its moving average where one is kept."""
        average = self.server.average if self.server is not None else None
        return self.pair.flat.whole_generator if average is None else average


def build_pair(
    config: Config,
    image_shape: tuple[int, int, int],
    torch_device: str = "cpu",
    *,
    histogram: Sequence[int] = (),
) -> Pair:
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
    return pack_pair(
        G,
        D,
        nz=config.model.nz,
        image_shape=image_shape,
        loss=LOSSES[config.training.loss],
        config=config,
        torch_device=torch_device,
        class_shares=class_shares,
    )


def pack_pair(
    G: nn.Module,
    D: nn.Module,
    *,
    nz: int,
    image_shape: tuple[int, int, int],
    loss: Loss,
    config: Config,
    torch_device: str = "cpu",
    class_shares: Tensor | None = None,
) -> Pair:
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
        averaged = ("G", "D") if config.algorithm.devices_train_generator else ("D",)
    with_statistics = config.algorithm.statistics_rule != "local"
    flat = Flat(G, D, with_statistics=with_statistics, with_moments_of=averaged)
    return Pair(
        G=G,
        D=D,
        nz=nz,
        image_shape=image_shape,
        loss=loss,
        flat=flat,
        class_shares=class_shares,
        recorder=make_recorder(training.graphs, torch_device),
    )


def build_node(
    link: Link,
    config: Config,
    pair: Pair,
    shards: dict[int, Shard],
    images: Sequence[int],
    histograms: Sequence[Sequence[int]] = (),
) -> Node:
    """A rank's node. shards: of the devices hosted here; images, histograms: of device 1, 2, …
    anywhere; the latter, images of each class, may be left out where nothing asks for classes.

    Raises AgreedError where the ranks' vectors differ in length.
    """
    participation = Participation(
        config.participation,
        images=images,
        batch_sizes=[min(config.training.batch_size, n) for n in images],
        shares=config.algorithm.share_rule,
        seed=config.run.seed,
        histograms=histograms,
        wireless=config.wireless,
    )
    devices = []
    for index, shard in shards.items():
        batches = Batches(
            shard, batch_size=config.training.batch_size, seed=config.run.seed, device=index
        )
        devices.append(Device(index, batches, pair, config))
    server = Server(pair, config) if link.is_server else None
    if server is not None and server.residual is not None:
        link.wire.carry_over(pair.flat.vector, server.residual)
    link.check_lengths(pair.flat.gan, pair.flat.discriminator)
    return Node(
        link=link,
        config=config,
        pair=pair,
        devices=devices,
        server=server,
        participation=participation,
    )
