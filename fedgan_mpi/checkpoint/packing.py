"""Converts the state of a device or the server to bytes and back.

The bytes are safetensors: named tensors, which cannot run code when they are read. A state is a
tree of dicts and lists with tensors and integers at its leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor


class PackedState:
    """A state as bytes in a buffer that later states overwrite.

    New memory for each state would cost more time than the copy.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        leaves = dict(_leaves(state))
        self.content = bytearray(save(leaves))
        start = 8 + int.from_bytes(self.content[:8], "little")
        header = json.loads(self.content[8:start])
        self._tensors = [
            torch.frombuffer(
                self.content,
                dtype=leaf.dtype,
                count=leaf.numel(),
                offset=start + header[name]["data_offsets"][0],
            ).view(leaf.shape)
            if leaf.numel()
            else torch.empty_like(leaf)
            for name, leaf in leaves.items()
        ]

    def fill(self, state: dict[str, Any]) -> None:
        """Overwrite the bytes with a state of the same structure, shapes and dtypes."""
        for packed, leaf in zip(self._tensors, _values(state), strict=True):
            if isinstance(leaf, Tensor):
                packed.copy_(leaf)
            else:
                packed.fill_(leaf)


def unpack(content: bytes | bytearray) -> dict[str, Tensor]:
    """Return the tensors in packed bytes by name. Raises ValueError if the bytes are invalid."""
    try:
        return load(bytes(content))
    except Exception as error:  # the parser raises many types for hostile bytes
        raise ValueError from error


def restore(tensors: dict[str, Tensor], like: dict[str, Any]) -> dict[str, Any]:
    """Return unpacked tensors as a state with the structure of `like`.

    Raises ValueError if names, dtypes or shapes differ from `like`.
    """
    if _kinds(tensors) != _kinds(dict(_leaves(like))):
        raise ValueError("the state has another structure")
    state: dict[str, Any] = _rebuild(tensors, like)
    return state


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield each leaf with its path, such as moments.0.first. Integers become scalar tensors."""
    if isinstance(value, dict | list):
        pairs: Iterable[Any] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)


def _values(value: Any) -> Iterator[Tensor | int]:
    """Yield the leaves in the order of `_leaves`. Their paths would cost more than the copies."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)
    else:
        yield value


def _rebuild(tensors: dict[str, Tensor], like: Any, name: str = "") -> Any:
    if isinstance(like, dict):
        prefix = f"{name}." if name else ""
        return {key: _rebuild(tensors, inner, f"{prefix}{key}") for key, inner in like.items()}
    if isinstance(like, list):
        return [_rebuild(tensors, inner, f"{name}.{n}") for n, inner in enumerate(like)]
    if isinstance(like, Tensor):
        return tensors[name]
    if not 0 <= (number := int(tensors[name])) < 2**53:
        raise ValueError(f"{name} is {number}")
    return number


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
