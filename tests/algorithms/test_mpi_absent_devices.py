"""Absent devices: their data, moments and networks neither matter nor change."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from rounds import FEDERATED, trained
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.data import Shard

pytestmark = pytest.mark.mpi(min_size=3)

TWO_IN_TURN = {"policy": "round_robin", "count": 2}
"""Devices 1 and 2 in round 0, devices 3 and 4 in round 1."""


def invert_images(shards: dict[int, Shard], device: int) -> dict[int, Shard]:
    """Return the shards with other images on one device."""
    images = 255 - shards[device].images
    return {**shards, device: Shard(**{**vars(shards[device]), "images": images})}


def poison_moments(algorithm, devices) -> None:
    for device in algorithm.rank_state.devices:
        if device.index in devices:
            for optimizer in device.local.optimizers:
                optimizer.first.fill_(math.nan)


def has_moved(device, before) -> bool:
    """Whether images drawn, noise stream or moments differ from a copy of the state."""

    def values(state):
        moments = [value for each in state["moments"] for value in each.values()]
        return map(torch.as_tensor, [state["drawn"], state["noise_stream"], *moments])

    return not all(map(torch.equal, values(device.state()), values(before)))


@pytest.mark.parametrize("name", FEDERATED)
def test_an_absent_device_has_no_part_in_the_round(comm, name):
    """Another shard, NaN moments and a NaN discriminator there do not change the round."""
    link = Link(comm)
    config = toy_config(algorithm={"name": name}, participation=TWO_IN_TURN)
    shards = toy_shards([8, 8, 8, 8])
    clean = toy_algorithm(link, config, shards)
    poisoned = toy_algorithm(link, config, invert_images(shards, 3))
    poison_moments(poisoned, (3, 4))
    for device in poisoned.rank_state.devices:
        if device.index in (3, 4):
            for own in device.local.own:
                own.fill_(math.nan)
    before = {device.index: copy.deepcopy(device.state()) for device in clean.rank_state.devices}
    lines = [play(algorithm, 1)[0] for algorithm in (clean, poisoned)]
    assert lines[0]["d_loss"] == lines[1]["d_loss"] and lines[0]["g_loss"] == lines[1]["g_loss"]
    if link.is_server:
        assert all(map(torch.equal, vectors(clean), vectors(poisoned)))
    for device in clean.rank_state.devices:
        assert has_moved(device, before[device.index]) == (device.index in (1, 2))
    # In round 1 the poisoned devices take part. No participant has a finite update.
    play(clean, 1, start=1)
    with pytest.raises(AgreedError, match=r"not finite|is nan|no device's update is finite"):
        play(poisoned, 1, start=1)


def test_a_device_changes_the_first_round_in_which_it_takes_part(comm):
    link = Link(comm)
    config = toy_config(participation=TWO_IN_TURN)
    shards = toy_shards([8, 8, 8, 8])
    changed = invert_images(shards, 3)
    results, changed_results = (
        [trained(link, config, each, rounds) for rounds in (1, 2)] for each in (shards, changed)
    )
    if link.is_server:
        assert all(map(torch.equal, results[0], changed_results[0]))
        assert not torch.equal(results[1][1], changed_results[1][1])


def test_nan_of_an_absent_device_does_not_reach_the_average(comm):
    """Its rank sends zeros, not 0 · NaN, whatever the rank's vector holds."""
    link = Link(comm)
    config = toy_config(participation=TWO_IN_TURN)
    algorithm = toy_algorithm(link, config, toy_shards([8] * 4))
    poison_moments(algorithm, (3, 4))
    if link.rank == 3:  # on four ranks or more it hosts no participant of round 0
        algorithm.flat.vector.fill_(math.nan)
    play(algorithm, 1)
    if link.is_server:
        assert algorithm.flat.vector.isfinite().all()
    with pytest.raises(AgreedError):  # devices 3 and 4 take part
        play(algorithm, 1, start=1)


def test_an_absent_device_keeps_streams_and_moments(comm):
    link = Link(comm)
    config = toy_config(participation={"policy": "round_robin", "count": 1})
    algorithm = toy_algorithm(link, config, toy_shards([8, 8, 8]))
    before = {d.index: copy.deepcopy(d.state()) for d in algorithm.rank_state.devices}
    play(algorithm, 1)
    for device in algorithm.rank_state.devices:
        assert has_moved(device, before[device.index]) == (device.index == 1)
