"""What one rank owns: its pair of networks, the devices it hosts, and the server on rank 0.

A device k owns what no other has: its shard, its random streams, its optimizer moments. Device k is
rank k; with fewer device ranks than devices, rank r hosts devices r, r + R, r + 2R, … one after the
other, on the same pair of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.flat_parameters import is_finite
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.federation.participation import Participation
from fedgan_mpi.federation.server import Server


@dataclass(kw_only=True)
class RankState:
    """One rank: its end of the link, its pair of networks, and whom it plays."""

    link: Link
    config: Config
    pair: NetworkPair
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
    def evaluated_generator(self) -> Tensor:
        """G as it is scored and exported, parameters and statistics in one vector: on the server
        its moving average where one is kept."""
        average = self.server.average if self.server is not None else None
        return self.pair.flat.whole_generator if average is None else average


def build_rank_state(
    link: Link,
    config: Config,
    pair: NetworkPair,
    shards: dict[int, Shard],
    images: Sequence[int],
    histograms: Sequence[Sequence[int]] = (),
) -> RankState:
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
    return RankState(
        link=link,
        config=config,
        pair=pair,
        devices=devices,
        server=server,
        participation=participation,
    )
