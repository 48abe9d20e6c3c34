"""Rounds under participation policies that depend on the channel or on past updates."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from rounds import UNEQUAL, assert_close, link_of
from toys import play, toy_algorithm, toy_config, toy_networks, toy_shards, vectors

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

POLICIES = ["random", "round_robin", "balanced", "best_channel", "proportional_fair", "importance"]
IMPORTANCE = {"policy": "importance", "count": 2}


@pytest.mark.parametrize("policy", POLICIES)
def test_all_ranks_have_the_same_participants(comm, policy):
    config = toy_config(participation={"policy": policy, "fraction": 0.4})
    lines = play(toy_algorithm(Link(comm), config, toy_shards(UNEQUAL)), 12)
    chosen = [line["participants"] for line in lines]
    assert all(others == chosen for others in comm.allgather(chosen))
    assert all(len(present) == 2 for present in chosen)
    assert len(set(map(tuple, chosen))) > 1


@pytest.mark.parametrize("name", ["ren", "fedgan"])
@pytest.mark.parametrize("average", ["reduce", "gather"])
def test_importance_scales_updates_before_the_average(comm, name, average):
    """One round, by hand: φ + Σ w_k / π_k (φ_k - φ), and the norms of the updates.

    φ_k is the result of a run whose only participant is k. BatchNorm statistics are not scaled.
    """
    link = Link(comm)
    shards, steps = toy_shards(UNEQUAL), {"batch_size": 4, "discriminator_steps": 3}
    no_server_steps = {} if name == "fedgan" else {"generator_steps": 0}
    options = {
        "algorithm": {"name": name},
        "training": {**steps, **no_server_steps},
        "link": {"average": average, "wire_dtype": "float64"},
    }
    config = toy_config(participation=IMPORTANCE, **options)
    algorithm = toy_algorithm(link, config, shards)
    participation = algorithm.rank_state.participation
    rates = participation.cell.faded_uplink_rates(config.run.seed, 0, 2)
    weights = [size * rate for size, rate in zip(UNEQUAL, rates, strict=True)]
    probabilities = [2 * (0.9 * weight / sum(weights) + 0.1 / 5) for weight in weights]
    assert max(probabilities) < 1  # no device is certain to be drawn
    (line,) = play(algorithm, 1)

    networks = toy_networks()
    start = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in networks]
    expected, statistics, norms = [vector.clone() for vector in start], 0.0, [0.0] * 5
    for k in line["participants"]:
        alone = toy_algorithm(link, toy_config(**options), copy.deepcopy(shards))
        alone.rank_state.participation.participants = lambda t, k=k: [k]
        play(alone, 1)
        trained = [comm.bcast(vector) for vector in vectors(alone)]
        update = [after - before for after, before in zip(trained, start, strict=True)]
        if name == "ren":
            update[0] *= 0  # devices do not train G
        factor = UNEQUAL[k - 1] / sum(UNEQUAL) / probabilities[k - 1]
        expected = [e + factor * u for e, u in zip(expected, update, strict=True)]
        norms[k - 1] = math.sqrt(sum(float((u * u).sum()) for u in update))
        images = sum(UNEQUAL[j - 1] for j in line["participants"])
        own = comm.bcast(alone.flat.statistics_of_discriminator.clone())
        statistics += UNEQUAL[k - 1] / images * own
    if link.is_server:
        for actual, vector in zip(vectors(algorithm), expected, strict=True):
            assert_close(actual, vector)
        assert_close(algorithm.flat.statistics_of_discriminator, statistics)
    assert participation.update_norms == pytest.approx(norms, rel=1e-9)


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_update_norms_need_no_further_verb(comm, schedule):
    """They are in the all-reduce of the metrics, equal on all ranks."""
    verbs, norms = [], []
    for policy in ("random", "importance"):
        link = Link(comm)
        config = toy_config(
            participation={"policy": policy, "count": 2}, algorithm={"schedule": schedule}
        )
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        verbs.append([])
        link.subscribers.append(verbs[-1].append)
        play(algorithm, 3)
        norms.append(algorithm.rank_state.participation.update_norms)
    assert verbs[0] == verbs[1] != []
    assert norms[0] == [0.0] * 5 and any(norms[1])
    assert all(others == norms[1] for others in comm.allgather(norms[1]))


def test_an_absent_device_keeps_its_update_norm(comm):
    algorithm = toy_algorithm(Link(comm), toy_config(participation=IMPORTANCE), toy_shards(UNEQUAL))
    participation = algorithm.rank_state.participation
    before = list(participation.update_norms)
    for t in range(6):
        (line,) = play(algorithm, 1, start=t)
        after = list(participation.update_norms)
        changed = {k for k in range(1, 6) if after[k - 1] != before[k - 1]}
        assert changed == set(line["participants"])
        before = after


def test_importance_is_bitwise_the_same_for_any_number_of_ranks(comm):
    """With sums in device order (gather)."""
    results = []
    config = toy_config(
        participation=IMPORTANCE, link={"average": "gather", "wire_dtype": "float64"}
    )
    for ranks in (2, 3):
        link = link_of(comm, ranks)
        if link is not None:
            algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
            chosen = [line["participants"] for line in play(algorithm, 6)]
            results.append((chosen, *map(torch.Tensor.numpy, vectors(algorithm))))
    if comm.rank == 0:
        on_two, on_three = results
        assert on_two[0] == on_three[0]
        assert all(map(np.array_equal, on_two[1:], on_three[1:]))
