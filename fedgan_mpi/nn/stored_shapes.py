"""Compares a network with a safetensors file before memory is taken for either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn


def check_stored_shapes(path: Path, build: Callable[[], nn.Module]) -> None:
    """Raise ValueError unless the file has the names and shapes of the network's tensors.

    The message is a clause that names the first difference. build: returns the network; new tensors
    get no memory here.
    """
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in build().state_dict().items()}
    with safe_open(path, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    for name in [*expected, *found]:
        shape, other = expected.get(name), found.get(name)
        if shape is None or other is None:
            raise ValueError(f"it {'has another' if shape is None else 'lacks the'} tensor {name}")
        if shape != other:
            raise ValueError(f"its tensor {name} has the shape {other}, not {shape}")
