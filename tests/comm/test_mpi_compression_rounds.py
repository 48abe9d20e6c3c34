"""Rounds with a 16-bit wire: equal to a plain loop over devices, on any transport and ranks."""

from __future__ import annotations

import copy

import numpy as np
import oracle_wire as oracle
import pytest
import torch
from lossy_toys import lossy_config
from rounding import ROUNDINGS, to_bfloat16
from rounds import FEDERATED, UNEQUAL, assert_close, link_of, oracle_shares
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards, vectors

from fedgan_mpi.comm.link import Link
from fedgan_mpi.wireless.cost import Sizes

pytestmark = pytest.mark.mpi(min_size=3)

CASES = {
    "ren": {},
    "ren parallel": {"algorithm": {"schedule": "parallel"}},
    "ren two in turn": {"participation": {"policy": "round_robin", "count": 2}},
    "fedgan": {"algorithm": {"name": "fedgan"}},
    "mdgan": {"algorithm": {"name": "mdgan"}},
    "uagan": {"algorithm": {"name": "uagan"}},
    "ensemble": {"algorithm": {"name": "ensemble"}},
    "uagan max": {"algorithm": {"name": "uagan", "mode": "max"}},
}


def assert_equal_networks(network, expected) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            assert_close(value, expected.state_dict()[name])


@pytest.mark.parametrize("dtype", ROUNDINGS)
@pytest.mark.parametrize("feedback", [False, True], ids=["plain", "feedback"])
@pytest.mark.parametrize("case", CASES)
def test_rounds_equal_a_plain_loop_over_devices(comm, case, feedback, dtype):
    """Five devices with unequal shards, for any number of ranks."""
    changes = copy.deepcopy(CASES[case])
    name = changes.get("algorithm", {}).get("name", "ren")
    devices_keep_d = name in ("mdgan", "uagan", "ensemble")
    if devices_keep_d and (feedback or (dtype == "float16" and name != "ensemble")):
        with pytest.raises(Exception, match=r"link\.(error_feedback|wire_dtype)"):
            lossy_config(dtype, feedback, **changes)
        return
    config = lossy_config(dtype, feedback, **changes)
    shards, link, rounds = toy_shards(UNEQUAL), Link(comm), 6
    algorithm = toy_algorithm(link, config, shards)
    play(algorithm, rounds)
    plain_loop = getattr(oracle, config.algorithm.name)
    arguments = (*toy_networks(), shards, config, rounds, oracle_shares(config, UNEQUAL), NZ)
    server, players = plain_loop(*arguments)
    pair = algorithm.rank_state.pair
    if link.is_server:
        assert_equal_networks(pair.G, server.G)
        assert_equal_networks(pair.D, server.D)
    if devices_keep_d:
        for device in algorithm.rank_state.devices:
            pair.flat.whole_discriminator.copy_(device.local.own[0])
            assert_equal_networks(pair.D, players[device.index].D)


@pytest.mark.parametrize("case", CASES)
def test_each_wire_gives_another_result(comm, case):
    """Negative control: the tests above would not notice a wire without effect."""
    name = CASES[case].get("algorithm", {}).get("name", "ren")
    configs = [lossy_config("bfloat16", **copy.deepcopy(CASES[case])), toy_config(**CASES[case])]
    if name in ("ren", "fedgan"):
        configs.append(lossy_config("float16", **copy.deepcopy(CASES[case])))
        configs.append(lossy_config("bfloat16", True, **copy.deepcopy(CASES[case])))
    link, results = Link(comm), []
    for config in configs:
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        play(algorithm, 4)
        results.append(torch.cat(vectors(algorithm)))
    if link.is_server:
        for n, one in enumerate(results):
            for other in results[:n]:
                assert (one - other).abs().max() > 1e-6


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_a_broadcast_does_not_round_the_servers_networks(comm, schedule):
    link = Link(comm)
    config = lossy_config(precision="float32", algorithm={"schedule": schedule})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8]))
    theta, phi = vectors(algorithm)
    link.broadcast(algorithm.flat.gan)
    received_theta, received_phi = vectors(algorithm)
    rounded_theta = to_bfloat16(theta.numpy())
    expected = theta if link.is_server else torch.from_numpy(rounded_theta)
    assert torch.equal(received_theta, expected)
    assert not np.array_equal(rounded_theta, theta.numpy())
    assert torch.equal(received_phi, phi) == link.is_server


@pytest.mark.parametrize("feedback", [False, True])
def test_results_are_bitwise_equal_for_any_ranks_and_transport(comm, feedback):
    """A lossy wire sums in device order, even if `link.average` is "reduce"."""
    config = lossy_config(feedback=feedback, precision="float32")
    results = []
    for ranks in range(2, comm.size + 1):
        for transport in ("mpi", "polling", "shared_memory"):
            link = link_of(comm, ranks, transport=transport)
            if link is not None:
                algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
                play(algorithm, 4)
                results.append(torch.cat(vectors(algorithm)))
            comm.barrier()
    if comm.rank == 0:
        assert len(results) == 3 * (comm.size - 1)
        assert all(torch.equal(each, results[0]) for each in results[1:])


@pytest.mark.parametrize("name", FEDERATED)
def test_the_counted_bytes_are_exactly_half(comm, name):
    link = Link(comm)
    lines = {}
    for wire in ("float32", "bfloat16"):
        config = lossy_config(wire, precision="float32", algorithm={"name": name})
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        lines[wire] = play(algorithm, 5)
        flat = algorithm.flat
    sizes = Sizes(theta=flat.theta.numel(), phi=flat.phi.numel(), fakes=4 * 16, batch=4)
    for t, (full, half) in enumerate(zip(lines["float32"], lines["bfloat16"], strict=True)):
        payload = algorithm.payload_of_round(t, sizes)
        assert half["bytes_down"] == 2 * payload.down * len(UNEQUAL)
        assert half["bytes_up"] == 2 * payload.up * len(UNEQUAL)
        for key in full:
            if key.startswith("bytes"):
                assert full[key] == 2 * half[key], key


def test_a_clipped_update_is_not_longer_after_rounding(comm):
    """dp_fedavg_gan: ε is valid for received updates of norm at most `clip`."""
    link = Link(comm)
    config = lossy_config(
        precision="float32",
        algorithm={"name": "dp_fedavg_gan", "clip": 0.002, "noise": 0.0},
    )
    algorithm = toy_algorithm(link, config, toy_shards([8] * link.device_ranks))
    sent = []
    reduce = link.reduce

    def record(rows, into):
        sent.append(rows.clone())
        reduce(rows, into)

    link.reduce = record
    play(algorithm, 5)
    assert len(sent) == 5
    for rows in sent:
        received = torch.from_numpy(to_bfloat16(rows.numpy())).double()
        longest = 0.002 / link.device_ranks
        assert received.norm() <= longest
        assert link.is_server or received.norm() > 0.98 * longest
