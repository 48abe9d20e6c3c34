"""Measures the memory that a function allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from torch.profiler import profile


def torch_allocations(function: Callable[[], object]) -> int:
    """Return the bytes that torch allocates during a call, summed over all allocations."""
    with profile(profile_memory=True) as profiler:
        function()
    return sum(max(0, event.self_cpu_memory_usage) for event in profiler.events())


def numpy_allocations(function: Callable[[], object]) -> int:
    """Return the peak of numpy's and Python's memory during a call, above the start, in bytes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - before
