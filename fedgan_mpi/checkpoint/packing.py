"""A device's or the server's state as bytes, and back: safetensors, which are numbers with names
and shapes and cannot run code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor


class PackedState:
    """Bytes of a state of tables and lists of tensors and of integers: made once, as new memory
    costs more than a copy into it, and filled again and again."""

    def __init__(self, state: dict[str, Any], into: memoryview | None = None) -> None:
        """into: room of the right length; None: of its own."""
        leaves = dict(_leaves(state))
        self.content: bytearray | memoryview = bytearray(save(leaves))
        if into is not None:
            into[:] = self.content
            self.content = into
        start = 8 + int.from_bytes(self.content[:8], "little")
        header = json.loads(bytes(self.content[8:start]))
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
        """Copy a state made of the same parts."""
        for mine, leaf in zip(self._tensors, _values(state), strict=True):
            if isinstance(leaf, Tensor):
                mine.copy_(leaf)
            else:
                mine.fill_(leaf)


def unpack(content: bytes | bytearray) -> dict[str, Tensor]:
    """The tensors of a packed state, by name. Raises ValueError where it is none."""
    try:
        return load(bytes(content))
    except Exception as error:  # of a hostile file, whatever the parser stumbled over
        raise ValueError from error


def restore(tensors: dict[str, Tensor], like: dict[str, Any]) -> dict[str, Any]:
    """The state that was packed. Raises ValueError where it is not made of the same parts as
    `like`."""
    if _kinds(tensors) != _kinds(dict(_leaves(like))):
        raise ValueError("a state of other parts")
    state: dict[str, Any] = _rebuild(tensors, like)
    return state


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its place, such as moments.0.first; integers as tensors of one number."""
    if isinstance(value, dict | list):
        pairs: Iterable[Any] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)


def _values(value: Any) -> Iterator[Tensor | int]:
    """The same without their places, in the same order: in a round, names would cost more than
    copies."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)
    else:
        yield value


def _rebuild(tensors: dict[str, Tensor], like: Any, name: str = "") -> Any:
    if isinstance(like, dict):
        inside = f"{name}." if name else ""
        return {key: _rebuild(tensors, inner, f"{inside}{key}") for key, inner in like.items()}
    if isinstance(like, list):
        return [_rebuild(tensors, inner, f"{name}.{n}") for n, inner in enumerate(like)]
    if isinstance(like, Tensor):
        return tensors[name]
    if not 0 <= (number := int(tensors[name])) < 2**53:
        raise ValueError(f"{name} is {number}")
    return number


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
