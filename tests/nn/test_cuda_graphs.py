"""Captured steps with a fake recorder, which replays a step by calling it again."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from graph_cases import STEP_KINDS, device_and_server, train_five_rounds
from torch import nn

from fedgan_mpi.errors import UserError
from fedgan_mpi.nn.cuda_graphs import (
    WARM_UPS,
    CudaGraphs,
    Step,
    can_end_failed_captures,
    make_recorder,
)


class FakeRecorder:
    """Counts calls. `refuses`: captures fail. `recovers`: steps can run after that."""

    def __init__(
        self, *, strict: bool = False, refuses: bool = False, recovers: bool = True
    ) -> None:
        self.strict, self.refuses, self.failed = strict, refuses, False
        self.recovers = recovers
        self.warm_ups = self.captures = self.replays = 0

    def warm_up(self, step):
        self.warm_ups += 1
        return step()

    def capture(self, step):
        if self.refuses:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        self.captures += 1

        def replay():
            self.replays += 1
            return step()

        return replay


def test_without_a_recorder_a_step_passes_its_inputs_on():
    calls = []
    step = Step(lambda *inputs: calls.append(inputs) or (torch.ones(1),), None)
    x = torch.rand(3)
    assert step(x, None)[0] == 1 and calls[0][0] is x and calls[0][1] is None


def test_a_captured_step_reads_all_inputs_from_fixed_addresses():
    recorder, addresses = FakeRecorder(), set()

    def double(x, y):
        addresses.add((x.data_ptr(), y))
        return (2 * x,)

    step = Step(double, recorder)
    for n in range(6):
        x = torch.full((4,), float(n))
        assert torch.equal(step(x, None)[0], 2 * x)
        assert x.data_ptr() not in {address for address, _ in addresses}
    assert len(addresses) == 1
    counts = (recorder.warm_ups, recorder.captures, recorder.replays)
    assert counts == (WARM_UPS, 1, 6 - WARM_UPS)
    for n in range(5):  # each input shape has its own capture
        x = torch.full((7,), float(n))
        assert torch.equal(step(x, None)[0], 2 * x)
    assert torch.equal(step(torch.ones(4), None)[0], torch.full((4,), 2.0))
    assert recorder.captures == 2


def test_after_a_failed_capture_all_steps_run_eagerly_with_one_warning():
    recorder = FakeRecorder(refuses=True)
    total = torch.zeros(1)
    steps = [Step(lambda x: (total.add_(x),), recorder) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(WARM_UPS + 3):
            for step in steps:
                step(torch.ones(1))
    assert total.item() == 2 * (WARM_UPS + 3)  # each call ran exactly once
    assert [str(w.message) for w in caught] == [
        "steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_a_strict_recorder_raises_the_error_of_a_failed_capture():
    step = Step(lambda x: (x,), FakeRecorder(strict=True, refuses=True))
    for _ in range(WARM_UPS):
        step(torch.ones(1))
    with pytest.raises(RuntimeError, match="not permitted"):
        step(torch.ones(1))


def test_a_torch_that_cannot_go_on_after_a_failed_capture_ends_the_run():
    runs = []
    step = Step(lambda x: runs.append(x) or (x,), FakeRecorder(refuses=True, recovers=False))
    for _ in range(WARM_UPS):
        step(torch.ones(1))
    sentence = r"training\.graphs is 'auto', but a step cannot be captured \(operation not .*'off'"
    with pytest.raises(UserError, match=sentence):
        step(torch.ones(1))
    assert len(runs) == WARM_UPS


@pytest.mark.parametrize(
    "version, expected",
    [("2.9.1+cu128", False), ("2.11.0", False), ("2.12.0a0+git1", True), ("3.0.1", True)],
)
def test_failed_captures_end_since_torch_2_12(version, expected):
    assert can_end_failed_captures(version) == expected


class FakeStreams:
    """torch.cuda's current stream, and a capture that fails as torch's does."""

    def __init__(self, monkeypatch, *, can_end: bool) -> None:
        self.current, self.can_end = "default", can_end
        cuda = {
            "graph_pool_handle": object, "CUDAGraph": object, "Stream": lambda: "capture",
            "current_stream": lambda: self.current, "graph": self.graph,
            "set_stream": lambda stream: setattr(self, "current", stream),
        }  # fmt: skip
        for name, fake in cuda.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def graph(self, graph, *, pool, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            if not self.can_end:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.current = before


@pytest.mark.parametrize("can_end", [True, False])
def test_a_failed_capture_leaves_the_stream_as_it_was(can_end, monkeypatch):
    streams = FakeStreams(monkeypatch, can_end=can_end)
    recorder = CudaGraphs(strict=False)
    seen = []

    def step():
        seen.append(streams.current)
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing" if can_end else "previous error"):
        recorder.capture(step)
    assert seen == ["capture"] and streams.current == "default"


def test_a_cpu_has_no_recorder():
    assert make_recorder("on", "cpu") is None
    assert make_recorder("auto", "cpu") is None
    assert make_recorder("off", "cuda:0") is None


# ------------------------------------------------------------ steps of devices and the server


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_captured_rounds_equal_eager_ones_bitwise(kind):
    """Networks, moments, streams and losses after five rounds."""
    recorder = FakeRecorder()
    losses, device, server = train_five_rounds(kind, None)
    captured_losses, captured_device, captured_server = train_five_rounds(kind, recorder)
    assert recorder.replays > 0 and recorder.captures >= 1
    assert losses == captured_losses
    assert torch.equal(server["vector"], captured_server["vector"])
    assert torch.equal(device["noise_stream"], captured_device["noise_stream"])
    for eager, captured in zip(device["moments"], captured_device["moments"], strict=True):
        assert eager["steps"] == captured["steps"] > 0
        assert torch.equal(eager["first"], captured["first"])


class FailingNetwork(nn.Module):
    """A network that raises in the call that counts `calls_left` down to zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls_left = network, 0

    def forward(self, x):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise RuntimeError("not during capture")
        return self.network(x)


def test_a_step_that_fails_during_capture_is_repeated_completely():
    """Capture fails while D is frozen for G's gradient. The eager step must train D again."""

    class FailingRecorder(FakeRecorder):
        def capture(self, step):
            pair.D.calls_left = 3  # D's passes: real images, fakes, fakes for G
            step()

    device, _ = device_and_server(FailingRecorder(), algorithm={"name": "fedgan"})
    pair = device.pair
    pair.D = FailingNetwork(pair.D)
    for t in range(WARM_UPS):
        device.train_both(t, 1, "simultaneous")
    phi = pair.flat.phi.detach().clone()
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        device.train_both(WARM_UPS, 1, "simultaneous")
    assert not torch.equal(phi, pair.flat.phi)
    assert all(p.requires_grad for p in pair.D.parameters())
