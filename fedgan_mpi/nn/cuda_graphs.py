"""CUDA graphs: captures each optimizer step once and replays it.

A small network's step consists of many short kernels, and Python launches them slower than a GPU
runs them. A replay launches all of them at once. Plain torch, without ranks. The `Recorder`
protocol separates the bookkeeping from CUDA, so that tests run it without a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fedgan_mpi.errors import UserError
from fedgan_mpi.hardware import ranges

Input = Tensor | None | tuple[Tensor | None, ...]
Outputs = tuple[Tensor, ...]
WARM_UPS = 3  # eager runs before capture, in which libraries choose their kernels


class Recorder(Protocol):
    """Captures steps. One recorder serves all steps of a process."""

    strict: bool
    """Whether a failed capture raises."""
    failed: bool
    """Whether a capture has failed. All steps run eagerly from then on."""
    recovers: bool
    """Whether steps can run eagerly after a failed capture."""

    def warm_up(self, step: Callable[[], Outputs]) -> Outputs:
        """Run a step eagerly on the stream of the later capture."""

    def capture(self, step: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Capture a step without running it and return its replay. If that fails, the current
        stream is the same as before.

        Each replay overwrites and returns the same output tensors.
        """


class CudaGraphs:
    """Records CUDA graphs. All graphs of a process share one memory pool: they run in sequence."""

    def __init__(self, *, strict: bool) -> None:
        self.strict, self.failed = strict, False
        self.recovers = can_end_failed_captures(torch.__version__)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def warm_up(self, step: Callable[[], Outputs]) -> Outputs:
        # Autograd runs a backward pass on the stream of its forward pass. Capture forbids the
        # default stream, so warm-ups use the capture's stream, too.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = step()
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs

    def capture(self, step: Callable[[], Outputs]) -> Callable[[], Outputs]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                outputs = step()
        except BaseException:
            # If the capture cannot be ended, torch leaves its stream as the current one.
            torch.cuda.set_stream(stream)
            raise

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


def can_end_failed_captures(version: str) -> bool:
    """Return whether this version of torch ends a capture completely that CUDA has invalidated.

    Older ones leave their allocator in the belief that the capture goes on, and later end the
    process (github.com/pytorch/pytorch/pull/180395).
    """
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= (2, 12)


def make_recorder(graphs: Literal["auto", "on", "off"], torch_device: str) -> Recorder | None:
    """Return the recorder for `training.graphs`, or None if steps run eagerly."""
    if graphs == "off" or not torch_device.startswith("cuda"):
        return None
    return CudaGraphs(strict=graphs == "on")


class Step:
    """A step on tensors, captured once per combination of input shapes.

    Inputs are tensors, None, or tuples of these. The function must update state in place, keep
    counters in tensors, and draw no random numbers. Its outputs are overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Outputs], recorder: Recorder | None) -> None:
        self._function, self._recorder = function, recorder
        self._name = getattr(function, "__name__", "step").lstrip("_")  # in profiles
        self._captures: dict[object, _CapturedStep] = {}

    def __call__(self, *inputs: Input) -> Outputs:
        with ranges.named(self._name):
            return self._run(*inputs)

    def _run(self, *inputs: Input) -> Outputs:
        recorder = self._recorder
        if recorder is None or recorder.failed:
            return self._function(*inputs)
        shapes = tuple(None if tensor is None else tensor.shape for tensor in _flatten(inputs))
        if shapes not in self._captures:
            self._captures[shapes] = _CapturedStep(self._function, inputs)
        return self._captures[shapes].run(recorder, inputs)


class _CapturedStep:
    """A step that reads its inputs from fixed addresses, as replays require."""

    def __init__(self, function: Callable[..., Outputs], inputs: tuple[Input, ...]) -> None:
        self._function = function
        self._inputs = [_empty_like(item) for item in inputs]
        self._runs = 0
        self._replay: Callable[[], Outputs] | None = None

    def run(self, recorder: Recorder, inputs: tuple[Input, ...]) -> Outputs:
        for static_input, tensor in zip(_flatten(self._inputs), _flatten(inputs), strict=True):
            if static_input is not None and tensor is not None:
                static_input.copy_(tensor)
        self._runs += 1
        if self._runs <= WARM_UPS:
            return recorder.warm_up(self._run_eagerly)
        if self._replay is None and not self._capture(recorder):
            return self._run_eagerly()
        assert self._replay is not None
        return self._replay()

    def _run_eagerly(self) -> Outputs:
        return self._function(*self._inputs)

    def _capture(self, recorder: Recorder) -> bool:
        """Capture the step; return False and warn if that fails.

        Raises the error if the recorder is strict, and UserError if steps cannot run after it.
        """
        try:
            self._replay = recorder.capture(self._run_eagerly)
        except Exception as error:  # any library in the step may refuse capture
            if recorder.strict:
                raise
            reason = " ".join(str(error).split())[:200]
            if not recorder.recovers:
                raise UserError(
                    f"training.graphs is 'auto', but a step cannot be captured ({reason}), and "
                    f"torch {torch.__version__} cannot go on after that; use 'off', or torch 2.12"
                ) from error
            recorder.failed = True
            warnings.warn(f"steps run without CUDA graphs: {reason}", stacklevel=2)
            return False
        return True


def _flatten(inputs: Sequence[Input]) -> list[Tensor | None]:
    """Return all tensors in order, including those in tuples."""
    return [tensor for item in inputs for tensor in (item if isinstance(item, tuple) else (item,))]


def _empty_like(item: Any) -> Any:
    """Allocate an input of the same structure, shapes and dtypes."""
    if isinstance(item, tuple):
        return type(item)(*map(_empty_like, item))
    return None if item is None else torch.empty_like(item)
