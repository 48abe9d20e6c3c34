"""Rounds of toy networks on the first ranks of a world, and comparisons with the oracles."""

from __future__ import annotations

import torch
from mpi4py import MPI
from toys import play, toy_algorithm, vectors

from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard

FEDERATED = [name for name in ALGORITHMS if name != "centralized"]


UNEQUAL = [10, 17, 4, 12, 9]


def link_of(comm: MPI.Comm, ranks: int, **options) -> Link | None:
    """Return a link among the first `ranks` ranks, and None on the others."""
    part = comm.Split(0 if comm.rank < ranks else 1, comm.rank)
    return Link(part, **options) if comm.rank < ranks else None


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def trained(link, config, shards, rounds=3, **options):
    """Train toy networks. Return (θ, φ) on the server and None on device ranks."""
    algorithm = toy_algorithm(link, config, shards, **options)
    play(algorithm, rounds)
    return vectors(algorithm) if link.is_server else None


def oracle_shares(config, sizes):
    """Return t -> {device: share}, written from the definition of the share rules."""
    count = config.participation.count or len(sizes)

    def shares(t):
        if config.participation.policy == "round_robin":
            chosen = {(t * count + n) % len(sizes) + 1 for n in range(count)}
        elif config.participation.policy == "random":
            # The draw itself is taken from the package. Tests check that all ranks agree on it.
            from fedgan_mpi.random_streams import Purpose, numpy_stream

            stream = numpy_stream(config.run.seed, Purpose.PARTICIPATION, t)
            chosen = {int(n) + 1 for n in stream.choice(len(sizes), count, replace=False)}
        else:
            chosen = set(range(1, len(sizes) + 1))
        weight = {
            "data": lambda k: sizes[k - 1],
            "batch": lambda k: min(config.training.batch_size, sizes[k - 1]),
            "uniform": lambda k: 1,
        }[config.algorithm.share_rule]
        total = sum(weight(k) for k in chosen)
        return {k: weight(k) / total for k in sorted(chosen)}

    return shares


def make_first(device, shard: Shard) -> None:
    """Give a device the random streams of device 1."""
    from fedgan_mpi.data import Batches
    from fedgan_mpi.random_streams import Purpose, torch_stream

    device.batches = Batches(shard, batch_size=device.batches.size, seed=0, device=1)
    device.noise_stream = torch_stream(0, Purpose.FAKE, 1)
