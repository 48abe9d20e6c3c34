"""Named ranges of time for profilers: rounds, verbs of the link and optimizer steps.

On a GPU they are NVTX ranges, which `nsys profile` shows. In the window of `record.profile` they
are ranges of torch's profiler. Otherwise they do nothing. Torch is imported by those who turn them
on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

_NOTHING = nullcontext()
shown_by: Callable[[str], AbstractContextManager[Any]] | None = None
"""Makes the range of a name; None: ranges do nothing."""


def named(name: str) -> AbstractContextManager[Any]:
    """Return a context manager that shows its block under this name."""
    return _NOTHING if shown_by is None else shown_by(name)


def use_nvtx() -> None:
    """Show ranges as NVTX ranges from now on. Needs a build of torch for GPUs."""
    global shown_by
    import torch

    shown_by = torch.cuda.nvtx.range


@contextmanager
def in_torch_profiler() -> Iterator[None]:
    """Show ranges in torch's profiler inside the block."""
    global shown_by
    import torch

    before, shown_by = shown_by, torch.profiler.record_function
    try:
        yield
    finally:
        shown_by = before
