"""Rounds of toys on the first ranks of a world, and what tests compare them by."""

from __future__ import annotations

import torch
from mpi4py import MPI
from toys import play, toy_algorithm, vectors

from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard

FEDERATED = [name for name in ALGORITHMS if name != "centralized"]


UNEQUAL = [10, 17, 4, 12, 9]


# Whether a device begins its next round beside the server depends on how long steps last took.
HAS_ROOM = "fedgan_mpi.hardware.affinity.Affinity.has_room_beside_server"


def link_of(comm: MPI.Comm, ranks: int, **options) -> Link | None:
    """A link among the first ranks, None on the others."""
    part = comm.Split(0 if comm.rank < ranks else 1, comm.rank)
    return Link(part, **options) if comm.rank < ranks else None


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def trained(link, config, shards, rounds=3, **options):
    """(θ, φ) on the server after so many rounds; None on device ranks."""
    algorithm = toy_algorithm(link, config, shards, **options)
    play(algorithm, rounds)
    return vectors(algorithm) if link.is_server else None


def oracle_shares(config, sizes):
    """The rule of shares, written once more: t -> {device: share}."""
    count = config.participation.count or len(sizes)

    def shares(t):
        if config.participation.policy == "round_robin":
            chosen = {(t * count + n) % len(sizes) + 1 for n in range(count)}
        elif config.participation.policy == "random":
            # Which ones is the stream's affair; that all ranks draw the same is this test's.
            from fedgan_mpi.random_streams import Purpose, numpy_stream

            stream = numpy_stream(config.run.seed, Purpose.PARTICIPATION, t)
            chosen = {int(n) + 1 for n in stream.choice(len(sizes), count, replace=False)}
        else:
            chosen = set(range(1, len(sizes) + 1))
        weigh = {
            "data": lambda k: sizes[k - 1],
            "batch": lambda k: min(config.training.batch_size, sizes[k - 1]),
            "uniform": lambda k: 1,
        }[config.algorithm.share_rule]
        total = sum(weigh(k) for k in chosen)
        return {k: weigh(k) / total for k in sorted(chosen)}

    return shares


def make_first(device, shard: Shard) -> None:
    """Give a device the streams of device 1."""
    from fedgan_mpi.data import Batches
    from fedgan_mpi.random_streams import Purpose, torch_stream

    device.batches = Batches(shard, batch_size=device.batches.size, seed=0, device=1)
    device.noise_stream = torch_stream(0, Purpose.FAKE, 1)
