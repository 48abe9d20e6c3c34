"""Reads stats.jsonl, a line a round and a line a score; a damaged one is found here and not in a
plot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STATS = "stats.jsonl"
Line = dict[str, Any]

_NUMBER = (int, float)
_ROUND: dict[str, tuple[type, ...]] = {
    "round": (int,),
    "participants": (list,),
    "d_loss": (*_NUMBER, type(None)),
    "g_loss": (*_NUMBER, type(None)),
    "seconds": _NUMBER,
    "bytes_down": _NUMBER,
    "bytes_up": _NUMBER,
}
_SCORE: dict[str, tuple[type, ...]] = {
    "round": (int,),
    "metric": (str,),
    "value": (*_NUMBER, type(None)),
    "floor": (*_NUMBER, type(None)),
    "samples": (int,),
}


def parse_lines(lines: Iterable[str]) -> list[Line]:
    """Raises ValueError where one is not as `Record` writes it."""
    try:
        parsed = [json.loads(line) for line in lines]
    except RecursionError:
        raise ValueError from None
    if not all(map(_is_sound, parsed)):
        raise ValueError
    return parsed


def read_stats(run: Path) -> tuple[list[Line], list[Line]]:
    """(rounds, scores) of a run. Raises ValueError where the file is damaged or half-written, and
    OSError."""
    return split(parse_lines((run / STATS).read_text(encoding="utf-8").splitlines()))


def split(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """(rounds, scores)."""
    lines = list(lines)
    return [line for line in lines if "metric" not in line], [
        line for line in lines if "metric" in line
    ]


def _is_sound(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    kinds = _SCORE if "metric" in line else _ROUND
    if not (line.keys() >= kinds.keys() and all(_fits(line[key], kinds[key]) for key in kinds)):
        return False
    return all(_fits(device, (int,)) for device in line.get("participants", ()))


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False  # to Python, truth is a number
    # Not NaN, and far from where sums and the axes of plots overflow.
    return not isinstance(value, _NUMBER) or abs(value) < 1e100
