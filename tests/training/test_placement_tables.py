"""The tables of config.toml about the ranks of a job."""

from __future__ import annotations

import os
import platform

import pytest
import torch

from fedgan_mpi.hardware import description
from fedgan_mpi.hardware.description import describe_hardware, format_ranges
from fedgan_mpi.training.provenance import group_ranks


@pytest.mark.parametrize(
    "numbers, expected",
    [([], ""), ([3], "3"), ([2, 0, 1], "0-2"), ([7, 0, 1, 3, 4, 9], "0-1,3-4,7,9")],
)
def test_numbers_are_listed_as_the_kernel_lists_cores(numbers, expected):
    assert format_ranges(numbers) == expected


def test_ranks_with_equal_descriptions_share_a_table():
    server, device = {"host": "a", "device": "cpu"}, {"host": "b", "device": "cuda:0"}
    assert group_ranks([server, device, device, server, device]) == [
        {"ranks": "0,3", **server},
        {"ranks": "1-2,4", **device},
    ]


def test_a_rank_on_a_cpu_names_host_cores_and_memory():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(cores)])
        found = describe_hardware(torch.device("cpu"))
    finally:
        os.sched_setaffinity(0, cores)
    assert found["cores"] == str(min(cores))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < int(found.pop("bytes_memory")) <= physical
    assert found["host"] == platform.node() and found["device"] == "cpu"
    assert found.keys() == {"host", "device", "cores", "threads"}


@pytest.mark.parametrize("cuda, hip, version", [("13.0", None, "13.0"), (None, "7.0", "ROCm 7.0")])
def test_a_rank_on_a_gpu_names_its_model_driver_and_cuda(cuda, hip, version, tmp_path, monkeypatch):
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "version").write_text("580.65.06\n")
    monkeypatch.setattr(description, "MODULES", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    found = describe_hardware(torch.device("cuda:2"))
    assert [found[key] for key in ("device", "gpu", "driver", "cuda")] == [
        "cuda:2",
        "GPU 2",
        "nvidia 580.65.06",
        version,
    ]
