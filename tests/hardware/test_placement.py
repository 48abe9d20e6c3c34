"""A GPU that torch cannot use is named, and what needs one is refused."""

from __future__ import annotations

import pytest
import torch

from fedgan_mpi.config import Config
from fedgan_mpi.config.training import TrainingConfig
from fedgan_mpi.hardware import placement
from fedgan_mpi.hardware.gpu import Gpus
from fedgan_mpi.hardware.placement import choose_torch_device, why_torch_has_no_gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU")


def choose(monkeypatch, gpus: int, **training: str) -> tuple[str, list[str]]:
    """Return the device and the problems of a machine with this number of GPUs."""
    monkeypatch.setattr(placement, "find_gpus", lambda: Gpus("cuda" if gpus else None, gpus))
    problems: list[str | None] = []
    device = choose_torch_device(Config(training=TrainingConfig(**training)), 0, problems.append)
    return device, [problem for problem in problems if problem is not None]


def test_the_reason_names_the_build_or_the_driver(monkeypatch):
    monkeypatch.setattr(placement, "find_gpus", lambda: Gpus(None, 0))
    assert why_torch_has_no_gpu() is None
    monkeypatch.setattr(placement, "find_gpus", lambda: Gpus("cuda", 2))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA and cannot use this machine's GPU" in str(why_torch_has_no_gpu())

    monkeypatch.setattr(placement, "find_gpus", lambda: Gpus("rocm", 2))
    monkeypatch.setattr(torch.version, "hip", None)
    assert "is built without ROCm and cannot use this machine's GPU" in str(why_torch_has_no_gpu())
    monkeypatch.setattr(placement, "find_gpus", lambda: Gpus("cuda", 2))

    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040).")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    reason = str(why_torch_has_no_gpu())
    assert "driver on your system is too old (found version 11040)" in reason and "\n" not in reason


def test_what_needs_a_gpu_is_refused_without_one(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose(monkeypatch, 0) == ("cpu", []) == choose(monkeypatch, 1)
    assert choose(monkeypatch, 1, device="cpu") == ("cpu", [])
    for gpus, reason in ((0, "this machine has no GPU"), (1, "is built without CUDA")):
        for key, value, instead in (("device", "cuda", "cpu"), ("graphs", "on", "off")):
            _, problems = choose(monkeypatch, gpus, **{key: value})
            assert len(problems) == 1 and reason in problems[0]
            assert problems[0].startswith(f"training.{key} is {value!r}, but ")
            assert problems[0].endswith(f"; use {instead!r}")
