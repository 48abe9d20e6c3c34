"""What ranks begin of the next round while others are still at this one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rounds import HAS_ROOM, UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.device import Device

pytestmark = pytest.mark.mpi(min_size=3)


def test_who_looks_ahead_changes_no_bit(comm, monkeypatch):
    """Which devices begin the next round while G trains is a question of time alone."""
    link = Link(comm)
    rooms = {
        "all": lambda before, call: True,
        "some": lambda before, call: before % 2 == call % 3 // 2,
        "none": lambda before, call: False,
    }
    results = {}
    for who, room in rooms.items():
        calls = []

        def has_room(self, before, room=room, calls=calls):
            calls.append(before)
            return room(before, len(calls))

        monkeypatch.setattr(HAS_ROOM, has_room)
        algorithm = toy_algorithm(link, toy_config(), toy_shards(UNEQUAL))
        losses = [(line["d_loss"], line["g_loss"]) for line in play(algorithm, 6)]
        results[who] = (*vectors(algorithm), losses)
        assert link.is_server or len(calls) == 6
    theta, phi, losses = results["all"]
    for other_theta, other_phi, other_losses in results.values():
        assert losses == other_losses
        if link.is_server:
            assert torch.equal(theta, other_theta) and torch.equal(phi, other_phi)


def test_who_has_begun_a_round_waits_for_no_other_that_begins_it(comm, monkeypatch):
    """One device is at the first half of its step while another is at the second half."""
    monkeypatch.setattr(HAS_ROOM, lambda *_, **__: True)
    link = Link(
        comm, transport="shared_memory"
    )  # an MPI library may need all its ranks to move numbers on
    algorithm = toy_algorithm(link, toy_config(), toy_shards([10] * link.device_ranks))
    play(algorithm, 1)
    begin, train = Device.prefetch, Device.train_discriminator

    def begin_late(device, t):
        if device.index == 1 and t == 2:
            assert comm.recv(source=2, tag=7) == t
        begin(device, t)

    def train_early(device, t):
        if device.index == 2 and t == 2:
            assert device.has_begun
            told.append(comm.isend(t, 1, tag=7))
        return train(device, t)

    told = []
    monkeypatch.setattr(Device, "look_ahead", begin_late)
    monkeypatch.setattr(Device, "train_discriminator", train_early)
    play(algorithm, 2, start=1)
    assert len(told) == (link.rank == 2)
    for request in told:
        request.wait()


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_seconds_of_what_is_begun_ahead_are_the_next_rounds(comm, schedule, monkeypatch):
    monkeypatch.setattr(HAS_ROOM, lambda *_, **__: True)
    link = Link(comm)
    config = toy_config(algorithm={"schedule": schedule}, training={"rounds": 3})
    algorithm = toy_algorithm(link, config, toy_shards([10] * link.device_ranks))
    for t in range(3):
        play(algorithm, 1, start=t)
        begins = not link.is_server and t < 2
        computes = begins and schedule == "serial"
        assert (algorithm.metrics.seconds_local > 0) == computes
        assert any(device.has_begun for device in algorithm.rank_state.devices) == computes
        assert algorithm.seconds_ahead.keys() == ({link.rank} if begins else set())
    assert algorithm.metrics.seconds_server == 0
    play(algorithm, 1, start=1)  # round 2 is begun again
    algorithm.start_over()
    assert algorithm.metrics.seconds_local == 0 and not algorithm.seconds_ahead


@pytest.mark.parametrize("name", ["ren", "fedgan"])
@pytest.mark.parametrize(
    ("policy", "count", "drawn_for"),
    [("full", 4, [{1, 2}, {1, 2}, set()]), ("round_robin", 2, [{3, 4}, {1, 2}, set()])],
)
def test_devices_draw_their_next_images_while_they_wait(comm, name, policy, count, drawn_for):
    """One of each rank that takes part in the next round, and nobody after the last one."""
    link = Link(comm)
    if link.device_ranks != 2:
        pytest.skip("needs two device ranks, each of which hosts two")
    algorithm = {"name": name, **({"schedule": "parallel"} if name == "ren" else {})}
    config = toy_config(
        algorithm=algorithm,
        participation={"policy": policy, "count": count},
        training={"rounds": 3},
    )
    played = toy_algorithm(link, config, toy_shards([8, 9, 10, 11]))
    for t, expected in enumerate(drawn_for):
        before = played.rank_state.images_drawn
        (line,) = play(played, 1, start=t)
        drawn = {device.index: device._drawn for device in played.rank_state.devices}
        assert {k for k, batch in drawn.items() if batch} == expected & drawn.keys()
        everyone = link.sum(np.array([float(played.rank_state.images_drawn - before)]))[0]
        steps = sum(
            played.rank_state.config.training.discriminator_steps for _ in line["participants"]
        )
        assert everyone == 4 * steps  # what is only looked at does not count
        for device in played.rank_state.devices:
            if drawn[device.index]:
                mark = device.batches.drawn
                images, _ = drawn[device.index]
                assert torch.equal(images, device._draw().data)
                device.batches.drawn = mark
