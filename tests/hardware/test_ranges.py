"""Named ranges: off by default, and around every verb and step if a profiler shows them."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from graph_cases import device_and_server

from fedgan_mpi.comm.link import Link
from fedgan_mpi.hardware import ranges
from fedgan_mpi.hardware.ranges import in_torch_profiler, named, use_nvtx


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    """Names and ends of NVTX ranges, of a fake that needs no GPU."""
    names: list[str] = []

    @contextmanager
    def fake_range(name):
        names.append(name)
        yield
        names.append(f"end of {name}")

    monkeypatch.setattr(torch.cuda.nvtx, "range", fake_range)
    monkeypatch.setattr(ranges, "shown_by", None)  # restores it
    use_nvtx()
    return names


def test_without_a_gpu_or_a_profiler_ranges_do_nothing():
    assert isinstance(named("round"), nullcontext) and named("a") is named("b")


def test_nvtx_ranges_are_around_verbs_and_steps(shown):
    Link().any(True)
    assert shown == ["any", "end of any"]
    shown.clear()
    device, server = device_and_server(None)
    device.train_discriminator(0)
    assert shown[:4] == ["real_half", "end of real_half", "fake_half", "end of fake_half"]
    shown.clear()
    server.train_generator()
    steps = server.training.server_steps
    assert shown == ["generator_step", "end of generator_step"] * steps


def test_torchs_profiler_shows_ranges_in_its_block_only(shown):
    with torch.profiler.profile() as profiler:
        with in_torch_profiler(), named("inside"):
            torch.ones(1)
        with named("outside"):
            torch.ones(1)
    assert shown == ["outside", "end of outside"]
    names = {event.key for event in profiler.key_averages()}
    assert "inside" in names and "outside" not in names
