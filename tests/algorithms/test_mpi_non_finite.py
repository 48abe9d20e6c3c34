"""Devices whose losses or updates are not finite (`training.non_finite`)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from rounds import FEDERATED, UNEQUAL, assert_close, trained
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.nn.steps import Batch

pytestmark = pytest.mark.mpi(min_size=3)


def break_device(algorithm, index: int) -> None:
    """Fill the optimizer's moments with NaN on the rank that hosts the device."""
    for device in algorithm.rank_state.devices:
        if device.index == index:
            device.optimizer.first.fill_(math.nan)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "ren"},
        {"name": "ren", "schedule": "parallel", "batchnorm": "recalibrate"},
        {"name": "ren", "batchnorm": "local"},
        {"name": "fedgan"},
        {"name": "fegan"},
        {"name": "fegan", "preset": "ifl"},
        {"name": "mdgan", "fake_batches": 1, "epochs": 0},
        {"name": "uagan"},
        {"name": "ensemble"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_skipped_device_counts_as_absent(comm, settings):
    """Two rounds with a broken device 2 equal two rounds in which it does not participate."""
    link = Link(comm)
    config = toy_config(algorithm=settings, training={"non_finite": "skip"})
    shards = toy_shards(UNEQUAL)
    broken, without = (toy_algorithm(link, config, shards) for _ in range(2))
    all_devices = broken.rank_state.participation.participants(0)
    without.rank_state.participation.participants = lambda t: [k for k in all_devices if k != 2]
    break_device(broken, 2)
    before = {device.index: copy.deepcopy(device.local.own) for device in broken.rank_state.devices}
    for line, expected in zip(play(broken, 2), play(without, 2), strict=True):
        assert line["skipped"] == [2] and "skipped" not in expected
        assert line["participants"] == all_devices
        for key in ("d_loss", "g_loss"):
            assert line[key] == pytest.approx(expected[key], rel=1e-9)
    if link.is_server:
        for actual, expected in zip(vectors(broken), vectors(without), strict=True):
            assert_close(actual, expected)
    for device in broken.rank_state.devices:
        if device.index == 2:
            assert device.optimizer.first.isnan().all()  # restored
            assert all(map(torch.equal, device.local.own, before[2]))
        else:
            assert device.optimizer.first.isfinite().all()


@pytest.mark.parametrize("name", FEDERATED)
def test_a_device_that_was_skipped_takes_part_again(comm, name):
    link = Link(comm)
    config = toy_config(algorithm={"name": name}, training={"non_finite": "skip"})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    for device in algorithm.rank_state.devices:
        if device.index == 2:
            real_batch, moments = device.real_batch, copy.deepcopy(device.optimizer.state())
            device.real_batch = lambda finite=real_batch: Batch(finite().data * math.inf, None)
    first = play(algorithm, 1)[0]
    assert first["skipped"] == [2]
    for device in algorithm.rank_state.devices:
        if device.index == 2:
            assert torch.equal(device.optimizer.second, moments["second"])
            device.real_batch = real_batch
            device.early_start.discard()  # it may have drawn an infinite batch
    assert "skipped" not in play(algorithm, 1, start=1)[0]
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()


@pytest.mark.parametrize("name", FEDERATED)
def test_skip_changes_no_bit_of_finite_rounds(comm, name):
    link = Link(comm)
    results = []
    for choice in ("stop", "skip"):
        config = toy_config(algorithm={"name": name}, training={"non_finite": choice})
        results.append(trained(link, config, toy_shards(UNEQUAL), 2))
    if link.is_server:
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", FEDERATED)
def test_non_finite_numbers_stop_all_ranks_after_the_same_round(comm, name):
    link = Link(comm)
    algorithm = toy_algorithm(link, toy_config(algorithm={"name": name}), toy_shards([8, 8, 8, 8]))
    play(algorithm, 1)
    for device in algorithm.rank_state.devices:
        device.optimizer.first.fill_(math.nan)
    with pytest.raises(AgreedError, match=r"in round 2; start anew|after round 2; start anew"):
        play(algorithm, 1, start=1)
    link.barrier()  # all ranks have raised the error


def test_a_non_finite_generator_stops_the_job_also_with_skip(comm):
    link = Link(comm)
    config = toy_config(training={"non_finite": "skip"})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    if link.is_server:
        algorithm.server.optimizer.first.fill_(math.nan)
    with pytest.raises(AgreedError, match=r"parameters are not finite after round 1|g_loss of the"):
        play(algorithm, 1)
