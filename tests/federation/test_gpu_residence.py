"""Which shards stay in GPU memory, with made-up sizes and GPUs."""

from __future__ import annotations

import pytest
import torch

from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.gpu_residence import GpuShards, choose_resident, describe, fit


def test_one_budget_serves_all_ranks_and_devices_of_a_gpu():
    """A quarter of 400 bytes holds three shards of 30, in the order of devices."""
    ranks = [GpuShards("a 0", 400, {2: 30, 4: 30}), GpuShards("a 0", 400, {1: 30, 3: 30})]
    assert fit(ranks) == {1, 2, 3}
    # Another GPU, also of the same number on another host, has a budget of its own.
    assert fit([ranks[0], ranks[1]._replace(gpu="b 0")]) == {1, 2, 3, 4}
    assert fit([ranks[0], ranks[1]._replace(free=240)]) == {1, 2}  # the least free memory counts


def test_a_shard_that_is_too_large_leaves_room_for_smaller_ones():
    ranks = [GpuShards("a 0", 400, {1: 101, 2: 100, 3: 1, 4: None})]
    assert fit(ranks) == {2}
    assert fit([ranks[0]._replace(free=404)]) == {1}


def test_the_log_says_where_the_images_of_each_device_are():
    ranks = [GpuShards("a 0", 400, {1: 30, 3: 90, 5: None}), GpuShards("a 0", 400, {2: 30, 4: 80})]
    assert describe(ranks, fit(ranks)) == [
        "GPU memory holds the images of devices 1-2.",
        "Host memory holds the images of devices 3-4: shards may take 25% of a GPU's free memory.",
        "Images of device 5 are read from disk batch by batch (data.read).",
    ]
    assert describe([], set()) == []


@pytest.mark.parametrize("free, expected", [(0, set()), (10**9, {1})])
def test_a_rank_offers_its_shards_and_the_free_memory_of_its_gpu(free, expected, monkeypatch):
    from toys import toy_shards

    properties = type("Properties", (), {"uuid": "GPU-1"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    link, shards = Link(), toy_shards([20])
    resident, notes = choose_resident(link, torch.device("cuda:0"), shards)
    assert resident == expected and len(notes) == 1
    assert choose_resident(link, torch.device("cpu"), shards) == (set(), [])
