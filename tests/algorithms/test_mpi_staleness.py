"""`algorithm.staleness`: uploads merged as they arrive in the simulated cell."""

from __future__ import annotations

import math

import pytest
import torch
from oracle_staleness import as_vector, stale_ren, toy_air
from rounds import UNEQUAL, assert_close, link_of, trained
from toys import (
    NZ,
    conditional_networks,
    play,
    toy_algorithm,
    toy_config,
    toy_networks,
    toy_shards,
    vectors,
)

from fedgan_mpi.comm.link import Link
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.random_streams import Purpose, numpy_stream
from fedgan_mpi.wireless.cell import Cell
from fedgan_mpi.wireless.macs import count_macs

pytestmark = pytest.mark.mpi(min_size=3)

RATES = (3e5, 1e7, 9e6, 2e6, 8e6)
"""Device 1 is a straggler, device 4 a lesser one."""
CELL = {"on": True, "fading": "none", "device_macs_per_second": RATES}
CASES = {
    "one": {"algorithm": {"staleness": 1}},
    "three": {"algorithm": {"staleness": 3}},
    "many": {"algorithm": {"staleness": 50}},
    "parallel": {"algorithm": {"staleness": 2, "schedule": "parallel"}},
    "local": {"algorithm": {"staleness": 2, "batchnorm": "local"}},
    "random": {
        "algorithm": {"staleness": 2},
        "participation": {"policy": "random", "count": 2},
    },
    "slow server": {
        "algorithm": {"staleness": 3, "schedule": "parallel"},
        "wireless": {"server_macs_per_second": 3e6},
    },
    "conditional": {"algorithm": {"staleness": 2}, "model": {"conditional": True}},
}


def configure(case: dict):
    sections = {**case, "wireless": {**CELL, **case.get("wireless", {})}}
    return toy_config(**sections)


def chosen_by(config):
    """Return (t, idle devices) -> devices that start; the draw is the package's."""
    count = config.participation.count

    def choose(t, idle):
        if config.participation.policy == "all":
            return idle
        stream = numpy_stream(config.run.seed, Purpose.PARTICIPATION, t)
        drawn = stream.choice(len(idle), min(count, len(idle)), replace=False)
        return sorted(idle[n] for n in drawn)

    return choose


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rounds_equal_the_oracle(comm, case):
    """Parameters, the uploads of each round, and its duration."""
    config, rounds = configure(case), 12
    networks = conditional_networks if config.model.conditional else toy_networks
    shards = toy_shards(UNEQUAL)
    algorithm = toy_algorithm(Link(comm), config, shards, networks=networks())
    play(algorithm, rounds)
    G, D = networks()
    classes = 3 if config.model.conditional else 0
    macs = count_macs(G, D, LOSSES["nonsaturating"], (1, 4, 4), nz=NZ, classes=classes)
    flat = algorithm.flat
    sizes = (UNEQUAL, flat.theta.numel(), flat.phi.numel())
    air = toy_air(Cell(config.wireless, len(UNEQUAL)), config, macs, *sizes)
    state_g, state_d, history = stale_ren(G, D, shards, config, rounds, chosen_by(config), NZ, air)
    for t, (late, seconds) in enumerate(history):
        assert algorithm.timeline.round(t).arrived == list(late)
        assert algorithm.timeline.seconds(t, []) == pytest.approx(seconds, rel=1e-9)
    ages = [age for late, _ in history for age in late.values()]
    assert 0 < max(ages) <= config.algorithm.staleness  # the bound is used, and kept
    if algorithm.link.is_server:
        theta, phi = vectors(algorithm)
        assert_close(theta, as_vector(state_g, G))
        assert_close(phi, as_vector(state_d, D))


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_the_cell_changes_nothing_without_staleness(comm, schedule):
    """Staleness 0 is the schedule itself: serial, or parallel, in which G alone uses an old D."""
    link = Link(comm)
    results = [
        trained(
            link, toy_config(algorithm={"schedule": schedule}, **wireless), toy_shards(UNEQUAL), 4
        )
        for wireless in ({}, {"wireless": CELL})
    ]
    stale = configure({"algorithm": {"schedule": schedule, "staleness": 1}})
    results.append(trained(link, stale, toy_shards(UNEQUAL), 4))
    if link.is_server:
        assert all(map(torch.equal, results[0], results[1]))
        assert not torch.equal(results[0][0], results[2][0])


def test_uploads_that_are_not_late_give_the_parallel_schedule_bitwise(comm):
    """If the server's steps take longer than every device, nothing is stale but G's D."""
    link, results = Link(comm), []
    for staleness in (0, 3):
        config = toy_config(
            algorithm={"schedule": "parallel", "staleness": staleness},
            wireless={**CELL, "server_macs_per_second": 1e4},
            link={"average": "gather", "wire_dtype": "float64"},
        )
        results.append(trained(link, config, toy_shards(UNEQUAL), 5))
    if link.is_server:
        assert all(map(torch.equal, *results))


def test_results_do_not_depend_on_the_ranks(comm):
    config = configure(
        {
            "algorithm": {"staleness": 2},
            "participation": {"policy": "random", "count": 3},
            "training": {"precision": "float32"},
            "link": {"wire_dtype": "float32"},
        }
    )
    results = []
    for ranks in range(1, comm.size + 1):
        link = link_of(comm, ranks)
        if link is not None:
            algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
            lines = play(algorithm, 10)
            keys = ("participants", "d_loss", "g_loss", "bytes_up", "images_seen")
            results.append((vectors(algorithm), [[line[key] for key in keys] for line in lines]))
        comm.barrier()
    if comm.rank == 0:
        assert len(results) == comm.size
        for parameters, lines in results[1:]:
            assert all(map(torch.equal, parameters, results[0][0]))
            assert lines == results[0][1]


def test_a_late_upload_that_is_not_finite_is_left_out(comm):
    """Device 1, a straggler, diverges in its first round and takes part again later."""
    link = Link(comm)
    config = configure({"algorithm": {"staleness": 2}, "training": {"non_finite": "skip"}})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    for device in algorithm.rank_state.devices:
        if device.index == 1:
            device.optimizer.first.fill_(math.nan)
    first = play(algorithm, 1)[0]
    assert first["skipped"] == [1]
    for device in algorithm.rank_state.devices:
        if device.index == 1:
            device.optimizer.first.zero_()
    for line in play(algorithm, 6, start=1):
        assert "skipped" not in line
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()
