"""A GPU that torch cannot use is named, and what needs one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from fedgan_mpi.config import Config
from fedgan_mpi.config.training import TrainingConfig
from fedgan_mpi.hardware import placement
from fedgan_mpi.hardware.gpu import Gpus
from fedgan_mpi.hardware.placement import choose_torch_device, why_torch_has_no_gpu
from fedgan_mpi.hardware.tf32 import use_tf32, without_tf32

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU")


class FakeRanks:
    """A rank whose lower ranks see the GPUs in `lower`. Collects problems."""

    def __init__(self, problems: list[str | None], lower: Sequence[object] = ()) -> None:
        self.agree, self.lower, self.rank = problems.append, list(lower), len(lower)

    def allgather(self, value: object) -> list[object]:
        return [*self.lower, value, value]


def choose(monkeypatch, gpus: int, **training: str) -> tuple[str, list[str]]:
    """Return the device and the problems of a machine with this number of GPUs."""
    monkeypatch.setattr(placement, "find_gpus", lambda: Gpus("cuda" if gpus else None, gpus))
    problems: list[str | None] = []
    config = Config(training=TrainingConfig(**training))
    device = choose_torch_device(config, FakeRanks(problems))
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


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch is older than 2.9"
)
def test_tf32_is_switched_through_one_interface_of_torch(recwarn):
    """Torch warns about the older one, and refuses both in one process."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    use_tf32(True)
    with without_tf32():
        assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
    assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "tf32")
    use_tf32(False)
    assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
    matmul.fp32_precision, conv.fp32_precision = before
    assert not recwarn.list


class FakeCuda:
    """GPUs by their identifiers; some of them belong to another process alone."""

    def __init__(self, monkeypatch, *uuids: str, busy: tuple[str, ...] = ()) -> None:
        self.current = ""
        zeros = torch.zeros

        def use(count: int, device: str) -> torch.Tensor:
            if uuids[int(device.removeprefix("cuda:"))] in busy:
                raise RuntimeError("CUDA error: device is busy or unavailable\nFor debugging …")
            return zeros(count)

        fakes = {
            "is_available": lambda: True,
            "device_count": lambda: len(uuids),
            "get_device_properties": lambda n: SimpleNamespace(uuid=uuids[n]),
            "set_device": lambda device: setattr(self, "current", device),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "zeros", use)
        monkeypatch.setattr(placement, "use_tf32", lambda allowed: None)
        monkeypatch.setattr(placement, "use_nvtx", lambda: None)


def test_ranks_that_see_the_same_gpus_take_them_in_turn(monkeypatch):
    """As bound by a scheduler: ranks 0, 2 and 4 to the GPUs of one socket, 1 and 3 to the other."""
    sockets = [("a", "b"), ("c", "d")]
    lower: list[tuple[str, ...]] = []
    taken = []
    for rank in range(5):
        visible = sockets[rank % 2]
        with monkeypatch.context() as patch:
            cuda = FakeCuda(patch, *visible)
            device = choose_torch_device(Config(), FakeRanks([], lower))
        assert cuda.current == device
        taken.append(visible[int(device[-1])])
        lower.append(visible)
    assert taken == ["a", "c", "b", "d", "a"]


def test_a_gpu_that_another_process_has_alone_is_named(monkeypatch):
    problems: list[str | None] = []
    for busy in ((), ("b",)):
        FakeCuda(monkeypatch, "a", "b", busy=busy)
        choose_torch_device(Config(), FakeRanks(problems, [("a", "b")]))
    none, without, unavailable, with_one = problems
    assert none is without is unavailable is None and with_one is not None
    assert with_one.startswith("a rank cannot use cuda:1 of ")
    assert "busy or unavailable; if its compute mode is exclusive" in with_one
    assert "under NVIDIA's MPS" in with_one and "\n" not in with_one
