"""SCAFFOLD: rounds with control variates."""

from __future__ import annotations

import pytest
import torch
from oracle_scaffold import scaffold
from rounds import UNEQUAL, assert_close, link_of, make_first, oracle_shares, trained
from toys import NZ, play, toy_algorithm, toy_config, toy_networks, toy_shards, vectors

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

SGD = {"optimizer": "sgd", "discriminator_lr": 0.2, "generator_lr": 0.1, "discriminator_steps": 3}


def configure(name="ren", *, controls=True, **changes):
    algorithm = {"name": name, "control_variates": controls, **changes.pop("algorithm", {})}
    training = {**SGD, **changes.pop("training", {})}
    return toy_config(algorithm=algorithm, training=training, **changes)


CASES = {
    "all": {},
    "uniform": {"algorithm": {"shares": "uniform"}},
    "random": {"participation": {"policy": "random", "count": 2}},
    "round robin": {"participation": {"policy": "round_robin", "count": 3}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_control_variates_equal_the_oracle(comm, name, case):
    config, shards, rounds = configure(name, **CASES[case]), toy_shards(UNEQUAL), 6
    algorithm = toy_algorithm(Link(comm), config, shards)
    play(algorithm, rounds)
    weights = UNEQUAL if config.algorithm.share_rule == "data" else [1] * len(UNEQUAL)
    all_shares = {k: weights[k - 1] / sum(weights) for k in shards}
    expected = scaffold(
        *toy_networks(), shards, config, rounds, oracle_shares(config, UNEQUAL), NZ, all_shares
    )
    if algorithm.link.is_server:
        pair = algorithm.rank_state.pair
        for network, state in ((pair.G, expected[0]), (pair.D, expected[1])):
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    assert_close(value, state[key])


@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_equal_devices_need_no_correction(comm, name):
    """With equal data and random streams, c_k = c, and the run equals one without; unequal ones
    differ."""
    results = []
    for same in (True, False):
        shards = toy_shards([10] * 4, same=same)
        for controls in (True, False):
            algorithm = toy_algorithm(Link(comm), configure(name, controls=controls), shards)
            if same:
                for device in algorithm.rank_state.devices:
                    make_first(device, shards[1])
            play(algorithm, 4)
            results.append(vectors(algorithm))
    if comm.rank == 0:
        for n in range(2):
            assert_close(results[0][n], results[1][n])
            assert (results[2][n] - results[3][n]).abs().max() > 1e-6


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_the_servers_control_variate_is_the_mean_of_the_devices(comm, schedule):
    config = configure(
        algorithm={"schedule": schedule}, participation={"policy": "random", "count": 3}
    )
    algorithm = toy_algorithm(Link(comm), config, toy_shards(UNEQUAL))
    play(algorithm, 5)
    total = torch.zeros_like(algorithm.flat.control_of_discriminator)
    for device in algorithm.rank_state.devices:
        (moments,) = device.local.moments()
        total += UNEQUAL[device.index - 1] / sum(UNEQUAL) * moments["control"]
    totals = comm.allgather(total)
    if algorithm.link.is_server:
        c = algorithm.flat.control_of_discriminator
        assert c.abs().max() > 1e-6
        assert_close(c, sum(totals))


@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_control_variates_double_the_networks_that_are_averaged(comm, name):
    """Counted in both directions, like those that `broadcast` and `average` send."""
    lines = {}
    for controls in (True, False):
        config = configure(
            name, controls=controls, participation={"policy": "round_robin", "count": 2}
        )
        algorithm = toy_algorithm(Link(comm), config, toy_shards(UNEQUAL))
        (lines[controls],) = play(algorithm, 1)
    flat = algorithm.flat
    averaged = flat.phi.numel() + (flat.theta.numel() if name == "fedgan" else 0)
    for key in ("bytes_down", "bytes_up"):
        assert lines[True][key] - lines[False][key] == 2 * 8 * averaged
        assert lines[True][key + "_other"] == lines[False][key + "_other"]
    assert lines[True]["bytes_up"] == 2 * lines[False]["bytes_up"]


@pytest.mark.parametrize("name", ["ren", "fedgan", "fegan"])
def test_control_variates_are_bitwise_the_same_for_any_number_of_ranks(comm, name):
    config = configure(
        name,
        participation={"policy": "random", "count": 3},
        link={"wire_dtype": "float32", "average": "gather"},
        training={"precision": "float32", "warmup_rounds": 3},
    )
    results = []
    for ranks in range(1, comm.size + 1):
        for transport in ("mpi",) if ranks == 1 else ("mpi", "shared_memory"):
            link = link_of(comm, ranks, transport=transport)
            if link is not None:
                results.append(trained(link, config, toy_shards(UNEQUAL), 5))
            comm.barrier()
    if comm.rank == 0:
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))
