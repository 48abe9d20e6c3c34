"""The devices of a rank."""

from __future__ import annotations

import pytest

from fedgan_mpi.data.loading import hosted_devices


@pytest.mark.parametrize(("devices", "device_ranks"), [(8, 8), (10, 4), (5, 1)])
def test_each_device_has_one_rank(devices, device_ranks):
    hosted = [hosted_devices(devices, rank, device_ranks) for rank in range(device_ranks + 1)]
    assert hosted[0] == []
    assert sorted(device for group in hosted for device in group) == list(range(1, devices + 1))
    assert max(map(len, hosted[1:])) - min(map(len, hosted[1:])) <= 1
