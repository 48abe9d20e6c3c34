"""Rounds whose participants send compressed updates."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from mpi4py import MPI
from rounds import UNEQUAL, assert_close, link_of, oracle_shares, trained
from test_mpi_aggregation import SHARES, Ranks
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards, vectors

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

TOP_K = {"compression": "top_k", "compression_options": {"share": 0.1}}
QSGD = {"compression": "qsgd", "compression_options": {"bucket": 16}}
ALL_NUMBERS = {"compression": "top_k", "compression_options": {"share": 1.0}}


class NaiveTopK:
    """What arrives of each device's update; the rest is added to its next one."""

    def __init__(self, share, feedback=True):
        self.share, self.feedback, self.rest = share, feedback, {}

    def __call__(self, k, update):
        update = [float(x) for x in update]
        if self.feedback:
            rest = self.rest.get(k, [0.0] * len(update))
            update = [x + r for x, r in zip(update, rest, strict=True)]
        count = max(1, round(self.share * len(update)))
        chosen = set(sorted(range(len(update)), key=lambda i: -abs(update[i]))[:count])
        self.rest[k] = [0.0 if i in chosen else x for i, x in enumerate(update)]
        return torch.tensor(
            [x if i in chosen else 0.0 for i, x in enumerate(update)], dtype=torch.float64
        )


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
@pytest.mark.parametrize("feedback", [True, False])
def test_ren_with_top_k_equals_its_oracle(comm, schedule, feedback):
    """Residuals of absent devices wait. BatchNorm statistics are averaged as they are."""
    options = {"share": 0.1, "residual": feedback}
    config = toy_config(
        algorithm={"schedule": schedule},
        participation={"policy": "random", "count": 3},
        aggregation={"compression": "top_k", "compression_options": options},
    )
    shards, rounds = toy_shards(UNEQUAL), 5
    algorithm = toy_algorithm(Link(comm), config, shards)
    play(algorithm, rounds)
    expected = oracle.ren(
        *toy_networks(), shards, config, rounds, oracle_shares(config, UNEQUAL), NZ,
        compress=NaiveTopK(0.1, feedback),
    )  # fmt: skip
    if algorithm.link.is_server:
        pair = algorithm.rank_state.pair
        for network, state in ((pair.G, expected[0]), (pair.D, expected[1])):
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    assert_close(value, state[key])


@pytest.mark.parametrize("rule", ["mean", "median", "norm_bound"])
@pytest.mark.parametrize("name", ["ren", "fedgan", "fegan"])
def test_all_numbers_give_the_uncompressed_run(comm, name, rule):
    results = []
    for compression in ({}, ALL_NUMBERS, QSGD):
        config = toy_config(
            algorithm={"name": name},
            participation={"policy": "round_robin", "count": 3},
            aggregation={"rule": rule, **compression},
        )
        results.append(trained(Link(comm), config, toy_shards(UNEQUAL), 4))
    if comm.rank == 0:
        for plain, same, rounded in zip(*results, strict=True):
            assert_close(same, plain)
            assert (rounded - plain).abs().max() > 1e-9


@pytest.mark.parametrize("compression", [TOP_K, QSGD], ids=["top_k", "qsgd"])
@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_compressed_updates_are_bitwise_the_same_for_any_number_of_ranks(comm, name, compression):
    """In float32; random rounding depends on round and device only."""
    config = toy_config(
        algorithm={"name": name},
        aggregation={**compression, "server_optimizer": "adam"},
        participation={"policy": "random", "count": 4},
        link={"wire_dtype": "float32"},
        training={"precision": "float32"},
    )
    results = []
    for ranks in range(1, comm.size + 1):
        for transport in ("mpi", "polling", "shared_memory"):
            link = link_of(comm, ranks, transport=transport)
            if link is not None:
                algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
                play(algorithm, 5)
                results.append(vectors(algorithm))
            comm.barrier()
    if comm.rank == 0:
        for theta, phi in results[1:]:
            assert torch.equal(theta, results[0][0]) and torch.equal(phi, results[0][1])


@pytest.mark.parametrize("compression", [TOP_K, QSGD], ids=["top_k", "qsgd"])
@pytest.mark.parametrize("name", ["ren", "fedgan", "fegan"])
def test_counted_bytes_are_those_that_mpi_sends(comm, name, compression, monkeypatch):
    sent = []
    isend = MPI.Comm.Isend

    class Counting(MPI.Intracomm):
        def Isend(self, buffer, *arguments):
            sent.append(buffer.numel() * buffer.element_size())
            return isend(self, buffer, *arguments)

    link = Link(Counting(comm.Dup()), transport="mpi")
    config = toy_config(
        algorithm={"name": name},
        participation={"policy": "round_robin", "count": 2},
        aggregation=compression,
    )
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    (line,) = play(algorithm, 1)
    flat = algorithm.flat
    count = flat.phi.numel() + (0 if name == "ren" else flat.theta.numel())
    if compression is TOP_K:
        message = round(0.1 * count) * (4 + 8)
    else:
        message = count + math.ceil(count / 16) * 8
    assert line["bytes_up"] == 2 * message
    statistics = 2 * 8 + (0 if name == "ren" else 2 * 16)
    assert line["bytes_up_other"] == 2 * 8 * statistics
    present = algorithm.rank_state.participation.participants(0)
    hosted = [device for device in algorithm.devices if device in present]
    assert sent == [message + 8 * statistics] * len(hosted)


def test_an_absent_or_skipped_device_sends_nothing(comm):
    """A message of bytes 255 is no update, and the server's vector keeps its parameters."""
    ranks = Ranks(comm, aggregation=ALL_NUMBERS, non_finite="skip")
    uploads = {k: ranks.random(k) for k in (2, 5)}
    total = SHARES_OF_TOYS[2] + SHARES_OF_TOYS[5]
    expected = sum(SHARES_OF_TOYS[k] / total * vector for k, vector in uploads.items())
    assert_close(ranks.round(0, uploads), expected)
    before = ranks.vector.clone()
    assert torch.equal(ranks.round(1, {}), before)


SHARES_OF_TOYS = {k: images / sum(UNEQUAL) for k, images in zip(SHARES, UNEQUAL, strict=True)}
