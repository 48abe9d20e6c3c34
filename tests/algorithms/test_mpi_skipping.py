"""Devices whose numbers are not finite."""

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


def break_device(algorithm, index):
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
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_skipped_device_is_an_absent_one(comm, settings):
    """Two rounds in which what device 2 computes is NaN, against two in which nobody asked it."""
    link = Link(comm)
    config = toy_config(algorithm=settings, training={"non_finite": "skip"})
    shards = toy_shards(UNEQUAL)
    broken, without = (toy_algorithm(link, config, shards) for _ in range(2))
    everyone = broken.rank_state.participation.participants(0)
    without.rank_state.participation.participants = lambda t: [k for k in everyone if k != 2]
    break_device(broken, 2)
    before = {device.index: copy.deepcopy(device.local.own) for device in broken.rank_state.devices}
    for line, expected in zip(play(broken, 2), play(without, 2), strict=True):
        assert line["skipped"] == [2] and "skipped" not in expected
        assert line["participants"] == everyone
        for key in ("d_loss", "g_loss"):
            assert line[key] == pytest.approx(expected[key], rel=1e-9)
    if link.is_server:
        for ours, theirs in zip(vectors(broken), vectors(without), strict=True):
            assert_close(ours, theirs)
    for device in broken.rank_state.devices:
        if device.index == 2:
            assert device.optimizer.first.isnan().all()  # as it was
            assert all(map(torch.equal, device.local.own, before[2]))
        else:
            assert device.optimizer.first.isfinite().all()


@pytest.mark.parametrize("name", FEDERATED)
def test_a_device_that_is_skipped_once_comes_back(comm, name):
    link = Link(comm)
    config = toy_config(algorithm={"name": name}, training={"non_finite": "skip"})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    for device in algorithm.rank_state.devices:
        if device.index == 2:
            take, moments = device.real_batch, copy.deepcopy(device.optimizer.state())
            device.real_batch = lambda take=take: Batch(take().data * math.inf, None)
    first = play(algorithm, 1)[0]
    assert first["skipped"] == [2]
    for device in algorithm.rank_state.devices:
        if device.index == 2:
            assert torch.equal(device.optimizer.second, moments["second"])
            device.real_batch = take
            device.early_start.discard()  # it may have looked at an infinite batch already
    assert "skipped" not in play(algorithm, 1, start=1)[0]
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()


@pytest.mark.parametrize("name", FEDERATED)
def test_skip_without_a_cause_changes_no_bit(comm, name):
    link = Link(comm)
    runs = []
    for choice in ("stop", "skip"):
        config = toy_config(algorithm={"name": name}, training={"non_finite": choice})
        runs.append(trained(link, config, toy_shards(UNEQUAL), 2))
    if link.is_server:
        assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("name", FEDERATED)
def test_what_is_not_finite_stops_all_ranks_after_the_same_round(comm, name):
    link = Link(comm)
    algorithm = toy_algorithm(link, toy_config(algorithm={"name": name}), toy_shards([8, 8, 8, 8]))
    play(algorithm, 1)
    for device in algorithm.rank_state.devices:
        device.optimizer.first.fill_(math.nan)
    with pytest.raises(AgreedError, match=r"in round 2; start anew|after round 2; start anew"):
        play(algorithm, 1, start=1)
    link.barrier()  # all are here


def test_the_servers_own_failure_stops_in_any_case(comm):
    link = Link(comm)
    config = toy_config(training={"non_finite": "skip"})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    if link.is_server:
        algorithm.server.optimizer.first.fill_(math.nan)
    with pytest.raises(AgreedError, match=r"parameters are not finite after round 1|g_loss of the"):
        play(algorithm, 1)
