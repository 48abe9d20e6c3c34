"""TF32: tensor cores of a GPU may round float32 factors to 10 bits of mantissa."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SWITCHES: list[tuple[Any, str]]
_ON: str | bool
_OFF: str | bool

# Torch refuses to mix its two interfaces in one process.
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
    _SWITCHES = [
        (torch.backends.cuda.matmul, "fp32_precision"),
        (torch.backends.cudnn.conv, "fp32_precision"),  # type: ignore[attr-defined]
    ]
    _ON, _OFF = "tf32", "ieee"
else:
    _SWITCHES = [
        (torch.backends.cuda.matmul, "allow_tf32"),
        (torch.backends.cudnn, "allow_tf32"),
    ]
    _ON, _OFF = True, False


def use_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in matrix products and convolutions."""
    for kernels, name in _SWITCHES:
        setattr(kernels, name, _ON if allowed else _OFF)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Forbid TF32 within a block."""
    before = [getattr(kernels, name) for kernels, name in _SWITCHES]
    use_tf32(False)
    try:
        yield
    finally:
        for (kernels, name), value in zip(_SWITCHES, before, strict=True):
            setattr(kernels, name, value)
