"""The state of one rank: its pair of networks, the devices that it hosts, and the server on rank 0.

Rank k hosts device k. If there are more devices than the R device ranks, rank r hosts the devices
r, r + R, r + 2R, …. They train one after the other on the rank's pair of networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config, choose_by_size
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.gpu_residence import choose_resident
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.federation.participation import Participation
from fedgan_mpi.federation.server import Server


@dataclass(kw_only=True)
class RankState:
    """Everything that one rank holds during training."""

    link: Link
    config: Config
    pair: NetworkPair
    devices: list[Device]
    """The devices hosted here; none on the server, except for `centralized`."""
    server: Server | None
    """On rank 0, None elsewhere."""
    participation: Participation
    notes: list[str] = field(default_factory=list)
    """Sentences for the log about how the state was built."""
    _server_numbers: list[Tensor] = field(default_factory=list)

    @property
    def owners(self) -> list[Device | Server]:
        """The devices and the server of this rank, each with a state for checkpoints."""
        return [*self.devices, *([] if self.server is None else [self.server])]

    @property
    def images_drawn(self) -> int:
        """Number of real images that the devices hosted here have drawn."""
        return sum(device.batches.drawn for device in self.devices)

    def is_finite(self, t: int) -> bool:
        """Whether the networks here are finite after round t: the server's networks, and networks
        that participants keep."""
        present = self.participation.participants(t)
        held = [] if self.server is None else [self.pair.flat.vector]
        for device in self.devices:
            if device.index in present:
                held += device.local.own
        return all(is_finite(vector) for vector in held)

    @contextmanager
    def device_view(self) -> Iterator[None]:
        """Have the devices' values in the vector inside the block.

        A job of one rank needs it: one pair of networks belongs to the server and to the devices.
        """
        if self.server is None or not self.devices or not self.config.algorithm.traits.has_devices:
            yield
            return
        numbers = [self.pair.flat.vector, *self.pair.counters()]
        if not self._server_numbers:
            self._server_numbers += [torch.empty_like(each) for each in numbers]
        for kept, each in zip(self._server_numbers, numbers, strict=True):
            kept.copy_(each)
        self.link.deliver()
        yield
        for kept, each in zip(self._server_numbers, numbers, strict=True):
            each.copy_(kept)

    @property
    def evaluated_generator(self) -> Tensor:
        """Parameters and statistics of the generator that is scored and exported, as one vector: on
        the server the moving average if there is one."""
        ema = self.server.ema if self.server is not None else None
        return self.pair.flat.whole_generator if ema is None else ema


def build_rank_state(
    link: Link,
    config: Config,
    pair: NetworkPair,
    shards: dict[int, Shard],
    images: Sequence[int],
    histograms: Sequence[Sequence[int]] = (),
) -> RankState:
    """Collective. Build the state of this rank.

    shards: device -> shard, for the devices hosted here.
    images: Number of images of device 1, 2, …, on every rank.
    histograms: Images per class of device 1, 2, …. May be omitted if nothing needs classes.

    Raises AgreedError if the vectors of two ranks differ in length.
    """
    config = choose_by_size(config, pair.image_shape)
    participation = Participation(
        config.participation,
        images=images,
        batch_sizes=[min(config.training.batch_size, n) for n in images],
        shares=config.algorithm.share_rule,
        seed=config.run.seed,
        histograms=histograms,
        wireless=config.wireless,
    )
    resident, notes = choose_resident(link, pair.torch_device, shards)
    devices = []
    for index, shard in shards.items():
        batches = Batches(
            shard, batch_size=config.training.batch_size, seed=config.run.seed, device=index
        )
        devices.append(
            Device(index, batches, pair, config, link.heartbeat, resident=index in resident)
        )
    server = Server(pair, config, link.heartbeat) if link.is_server else None
    if server is not None and server.residual is not None:
        link.wire.enable_error_feedback(pair.flat.vector, server.residual)
    link.check_lengths(pair.flat.gan, pair.flat.discriminator)
    return RankState(
        link=link,
        config=config,
        pair=pair,
        devices=devices,
        server=server,
        participation=participation,
        notes=notes,
    )
