"""Rounds whose participants are chosen by channel and by update, on every rank alike."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from toys import play, toy_algorithm, toy_config, toy_networks, toy_shards, vectors

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

SIZES = [10, 17, 4, 12, 9]
POLICIES = ["random", "round_robin", "balanced", "best_channel", "proportional_fair", "importance"]


@pytest.mark.parametrize("policy", POLICIES)
def test_all_ranks_have_the_same_participants(comm, policy):
    config = toy_config(participation={"policy": policy, "fraction": 0.4})
    lines = play(toy_algorithm(Link(comm), config, toy_shards(SIZES)), 12)
    chosen = [line["participants"] for line in lines]
    assert all(each == chosen for each in comm.allgather(chosen))
    assert all(len(present) == 2 for present in chosen)
    assert len(set(map(tuple, chosen))) > 1


@pytest.mark.parametrize("name", ["ren", "fedgan"])
@pytest.mark.parametrize("average", ["reduce", "gather"])
def test_importance_averages_lengthened_updates(comm, name, average):
    """One round, by hand: φ + Σ_{k in S} w_k / π_k (φ_k - φ), and what it leaves the next one. φ_k
    comes from a run in which only k takes part. BatchNorm statistics are averaged as ever."""
    link = Link(comm)
    shards, batches = toy_shards(SIZES), {"batch_size": 4, "discriminator_steps": 3}
    server = {} if name == "fedgan" else {"generator_steps": 0}
    options = {
        "algorithm": {"name": name},
        "training": {**batches, **server},
        "link": {"average": average, "wire_dtype": "float64"},
    }
    config = toy_config(participation={"policy": "importance", "count": 2}, **options)
    algorithm = toy_algorithm(link, config, shards)
    people = algorithm.rank_state.participation
    rates = people.cell.faded_uplink_rates(config.run.seed, 0, 2)
    wanted = [size * rate for size, rate in zip(SIZES, rates, strict=True)]
    chances = [2 * (0.9 * each / sum(wanted) + 0.1 / 5) for each in wanted]
    assert max(chances) < 1  # the plain case
    (line,) = play(algorithm, 1)

    G, D = toy_networks()
    start = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (G, D)]
    expected, statistics, norms = [each.clone() for each in start], 0.0, [0.0] * 5
    for k in line["participants"]:
        alone = toy_algorithm(link, toy_config(**options), copy.deepcopy(shards))
        alone.rank_state.participation.participants = lambda t, k=k: [k]
        play(alone, 1)
        trained = [comm.bcast(vector) for vector in vectors(alone)]
        moved = [after - before for after, before in zip(trained, start, strict=True)]
        if name == "ren":
            moved[0] *= 0
        weight = SIZES[k - 1] / sum(SIZES) / chances[k - 1]
        expected = [e + weight * m for e, m in zip(expected, moved, strict=True)]
        norms[k - 1] = math.sqrt(sum(float((m * m).sum()) for m in moved))
        part = sum(SIZES[j - 1] for j in line["participants"])
        own = comm.bcast(alone.flat.statistics_of_discriminator.clone())
        statistics += SIZES[k - 1] / part * own
    if link.is_server:
        for actual, wish in zip(vectors(algorithm), expected, strict=True):
            torch.testing.assert_close(actual, wish, rtol=1e-9, atol=1e-12)
        held = algorithm.flat.statistics_of_discriminator
        torch.testing.assert_close(held, statistics, rtol=1e-9, atol=1e-12)
    assert people.update_norms == pytest.approx(norms, rel=1e-9)


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_norms_cost_no_exchange(comm, schedule):
    """They travel with the round's other numbers: as many sums as with another policy, and the same
    on every rank."""
    counts, norms = [], []
    for policy in ("random", "importance"):
        link = Link(comm)
        config = toy_config(
            participation={"policy": policy, "count": 2}, algorithm={"schedule": schedule}
        )
        algorithm = toy_algorithm(link, config, toy_shards(SIZES))
        arrive, calls = link._arrive, []
        link._arrive = lambda arrive=arrive, calls=calls: (calls.append(1), arrive())[1]
        play(algorithm, 3)
        counts.append(len(calls))
        norms.append(algorithm.rank_state.participation.update_norms)
    assert counts[0] == counts[1] > 0
    assert norms[0] == [0.0] * 5 and any(norms[1])
    assert all(each == norms[1] for each in comm.allgather(norms[1]))


def test_a_device_that_sat_out_keeps_the_norm_it_had(comm):
    config = toy_config(participation={"policy": "importance", "count": 2})
    algorithm = toy_algorithm(Link(comm), config, toy_shards(SIZES))
    people = algorithm.rank_state.participation
    before = list(people.update_norms)
    for t in range(6):
        (line,) = play(algorithm, 1, start=t)
        after = list(people.update_norms)
        changed = {k for k in range(1, 6) if after[k - 1] != before[k - 1]}
        assert changed == set(line["participants"])
        before = after


def test_rounds_with_norms_have_the_same_bits_on_any_number_of_ranks(comm):
    """With gather; hosted or not."""
    results = []
    for ranks in (2, 3):
        part = comm.Split(0 if comm.rank < ranks else 1, comm.rank)
        if comm.rank < ranks:
            link = Link(part)
            config = toy_config(
                participation={"policy": "importance", "count": 2},
                link={"average": "gather", "wire_dtype": "float64"},
            )
            algorithm = toy_algorithm(link, config, toy_shards(SIZES))
            lines = play(algorithm, 6)
            if link.is_server:
                chosen = [line["participants"] for line in lines]
                results.append((chosen, *map(torch.Tensor.numpy, vectors(algorithm))))
    if comm.rank == 0:
        two, three = results
        assert two[0] == three[0]
        assert all(np.array_equal(a, b) for a, b in zip(two[1:], three[1:], strict=True))
