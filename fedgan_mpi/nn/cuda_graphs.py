"""Optimizer steps recorded once and replayed: a GPU that waits for Python to launch a small
network's many kernels is given all of a step's at once (CUDA graphs).

Plain torch; never hears of ranks. What records is an object of its own, so that the same path can
be followed without a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Input = Tensor | None | tuple[Tensor | None, ...]
Outcome = tuple[Tensor, ...]
WARM_UPS = 3  # steps that run as they are: libraries choose their kernels in the first ones


class Recorder(Protocol):
    """What records and replays."""

    strict: bool
    """Whether a step that cannot be recorded ends the run."""
    given_up: bool
    """Whether one could not be recorded: all run as they are from then on."""

    def warm_up(self, step: Callable[[], Outcome]) -> Outcome:
        """Run a step as it is, where it will be recorded."""

    def record(self, step: Callable[[], Outcome]) -> Callable[[], Outcome]:
        """Record a step without running it; what comes back runs it, and gives the same tensors
        each time."""


class Cuda:
    """CUDA graphs, all of a process in one pool of memory: they run one after the other."""

    def __init__(self, *, strict: bool) -> None:
        self.strict, self.given_up = strict, False
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def warm_up(self, step: Callable[[], Outcome]) -> Outcome:
        # A backward pass remembers the stream it began on, and none that is recorded may begin on
        # the one that all else runs on.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outcome = step()
        torch.cuda.current_stream().wait_stream(self._stream)
        return outcome

    def record(self, step: Callable[[], Outcome]) -> Callable[[], Outcome]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outcome = step()

        def replay() -> Outcome:
            graph.replay()
            return outcome

        return replay


def make_recorder(graphs: Literal["auto", "on", "off"], torch_device: str) -> Recorder | None:
    """The configured way of running steps; None: as they are."""
    if graphs == "off" or not torch_device.startswith("cuda"):
        return None
    return Cuda(strict=graphs == "on")


class Step:
    """A step as a function of tensors and tuples of them, some of which may be None, recorded for
    each of their shapes.

    It must do the same with every call: move what it moves in place, count in tensors, and draw
    nothing at random. What it gives is overwritten by its next call.
    """

    def __init__(self, act: Callable[..., Outcome], recorder: Recorder | None) -> None:
        self._act, self._recorder = act, recorder
        self._recorded: dict[object, _Recording] = {}

    def __call__(self, *inputs: Input) -> Outcome:
        recorder = self._recorder
        if recorder is None or recorder.given_up:
            return self._act(*inputs)
        shapes = tuple(None if tensor is None else tensor.shape for tensor in _each(inputs))
        if shapes not in self._recorded:
            self._recorded[shapes] = _Recording(self._act, inputs)
        return self._recorded[shapes].run(recorder, inputs)


class _Recording:
    """A step with inputs that stay where they are."""

    def __init__(self, act: Callable[..., Outcome], like: tuple[Input, ...]) -> None:
        self._act = act
        self._inputs = [_like(item) for item in like]
        self._runs = 0
        self._replay: Callable[[], Outcome] | None = None

    def run(self, recorder: Recorder, inputs: tuple[Input, ...]) -> Outcome:
        for place, tensor in zip(_each(self._inputs), _each(inputs), strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        self._runs += 1
        if self._runs <= WARM_UPS:
            return recorder.warm_up(self._step)
        if self._replay is None and not self._record(recorder):
            return self._step()
        assert self._replay is not None
        return self._replay()

    def _step(self) -> Outcome:
        return self._act(*self._inputs)

    def _record(self, recorder: Recorder) -> bool:
        try:
            self._replay = recorder.record(self._step)
        except Exception as error:  # whatever a library has against it
            if recorder.strict:
                raise
            recorder.given_up = True
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"steps run without CUDA graphs: {reason}", stacklevel=2)
            return False
        return True


def _each(inputs: Sequence[Input]) -> list[Tensor | None]:
    """All tensors, those of tuples too, in order."""
    return [tensor for item in inputs for tensor in (item if isinstance(item, tuple) else (item,))]


def _like(item: Any) -> Any:
    """New memory for an input, of the same shape and kind."""
    if isinstance(item, tuple):
        return type(item)(*map(_like, item))
    return None if item is None else torch.empty_like(item)
