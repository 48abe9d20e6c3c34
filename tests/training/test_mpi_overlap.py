"""Early starts of local rounds: equal bits, fewer waits, and seconds in the right round."""

from __future__ import annotations

import pytest
import torch
from rounds import FEDERATED, UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.device import Device
from fedgan_mpi.training.overlap import Overlap

pytestmark = pytest.mark.mpi(min_size=3)

CASES = [
    *({"name": name} for name in FEDERATED),
    {"name": "ren", "schedule": "parallel"},
    {"name": "ensemble", "schedule": "parallel"},
    {"name": "ren", "moments": "averaged"},
    {"name": "ren", "moments": "reset"},
    {"name": "ren", "batchnorm": "local"},
]


@pytest.mark.parametrize("transport", ["mpi", "shared_memory"])
@pytest.mark.parametrize("settings", CASES, ids=lambda settings: "-".join(settings.values()))
def test_overlap_changes_no_bit(comm, settings, transport):
    """With hosted devices of unequal shards, one of them absent in each round."""
    results = []
    for overlap in (True, False):
        link = Link(comm, transport=transport)
        config = toy_config(
            algorithm=settings,
            participation={"policy": "round_robin", "count": len(UNEQUAL) - 1},
            training={"overlap": overlap},
        )
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        lines = play(algorithm, 5)
        numbers = [(line["d_loss"], line["g_loss"], line["bytes_down"]) for line in lines]
        results.append((numbers, vectors(algorithm)))
    (numbers, overlapped), (plain_numbers, plain) = results
    assert numbers == plain_numbers
    if link.is_server:
        assert all(map(torch.equal, overlapped, plain))


def test_devices_that_start_early_do_not_wait_for_each_other(comm, monkeypatch):
    """Device 1 begins the real half of a step after device 2 has begun the fake half."""
    link = Link(comm, transport="shared_memory")
    algorithm = toy_algorithm(link, toy_config(), toy_shards([10] * link.device_ranks))
    play(algorithm, 1)
    local_round, train = Device.discriminator_round, Device.train_discriminator
    requests = []

    def start_late(device, t):
        if device.index == 1 and t == 2:
            assert comm.recv(source=2, tag=7) == t
        return local_round(device, t)

    def notify_device_1(device, t):
        if device.index == 2 and t == 2:
            assert device.early_start.has_started
            requests.append(comm.isend(t, 1, tag=7))
        return train(device, t)

    monkeypatch.setattr(Device, "discriminator_round", start_late)
    monkeypatch.setattr(Device, "train_discriminator", notify_device_1)
    play(algorithm, 2, start=1)
    assert len(requests) == (link.rank == 2)
    for request in requests:
        request.wait()


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
@pytest.mark.parametrize("overlap", [True, False])
def test_seconds_of_an_early_start_count_in_its_round(comm, schedule, overlap):
    link = Link(comm)
    config = toy_config(
        algorithm={"schedule": schedule}, training={"rounds": 3, "overlap": overlap}
    )
    algorithm = toy_algorithm(link, config, toy_shards([10] * link.device_ranks))
    for t in range(3):
        play(algorithm, 1, start=t)
        starts = overlap and schedule == "serial" and not link.is_server and t < 2
        assert (algorithm.metrics.seconds_local > 0) == starts
        assert algorithm.metrics.seconds_of_device.keys() == ({link.rank} if starts else set())
        for device in algorithm.rank_state.devices:
            assert device.early_start.has_started == starts
    assert algorithm.metrics.seconds_server == 0
    play(algorithm, 1, start=1)  # round 2 starts early again
    algorithm.start_over()
    assert algorithm.metrics.seconds_local == 0 and not algorithm.metrics.seconds_of_device
    assert not any(device.early_start.has_started for device in algorithm.rank_state.devices)


@pytest.mark.parametrize("transport", ["mpi", "polling"])
def test_the_server_starts_before_the_average_of_the_serial_schedule(comm, transport):
    """If ranks do not share cores. It then makes its fakes before it has the new D."""
    link = Link(comm, transport=transport)
    link.shared_cores = []
    algorithm = toy_algorithm(link, toy_config(), toy_shards([10] * link.device_ranks))
    has_started = {}
    overlap = Overlap(algorithm)

    def record(verb):
        has_started[verb] = link.is_server and algorithm.server.early_start.has_started

    link.subscribers.append(record)
    algorithm.round(0)
    assert not has_started["broadcast"]
    assert has_started["average"] == has_started["reduce"] == link.is_server
    assert overlap is not None


def test_an_absent_device_does_not_start(comm):
    link = Link(comm)
    config = toy_config(participation={"policy": "round_robin", "count": 1})
    algorithm = toy_algorithm(link, config, toy_shards([10] * link.device_ranks))
    for t in range(4):
        play(algorithm, 1, start=t)
        next_participants = algorithm.rank_state.participation.participants(t + 1)
        for k, device in algorithm.devices.items():
            assert device.early_start.has_started == (k in next_participants)
