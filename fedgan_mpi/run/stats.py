"""Reads stats.jsonl: one line per round, one per score. Damaged lines are refused here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STATS = "stats.jsonl"
Line = dict[str, Any]
ROUND_KEYS = frozenset(
    (
        "round", "participants", "skipped", "d_loss", "g_loss", "seconds", "seconds_downlink",
        "seconds_local", "seconds_uplink", "seconds_server", "wireless_seconds", "bytes_down",
        "bytes_up", "bytes_down_other", "bytes_up_other", "images_seen", "metric", "value",
        "samples", "floor",
    )
)  # fmt: skip
"""Keys of the lines of rounds and scores; an algorithm logs under other names."""

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
_MAX = 1e100
"""Larger numbers would overflow sums and the axes of plots."""


def parse_lines(lines: Iterable[str]) -> list[Line]:
    """Parse lines of stats.jsonl. Raises ValueError if one is not as `Record` writes it."""
    try:
        parsed = [json.loads(line) for line in lines]
    except RecursionError:
        raise ValueError from None
    if not all(map(_is_valid, parsed)):
        raise ValueError
    return parsed


def read_stats(run: Path) -> tuple[list[Line], list[Line]]:
    """Return (rounds, scores) of a run.

    Raises ValueError if stats.jsonl is damaged or incomplete, and OSError if it cannot be read.
    """
    return split(parse_lines((run / STATS).read_text(encoding="utf-8").splitlines()))


def split(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """Return (rounds, scores)."""
    rounds: list[Line] = []
    scores: list[Line] = []
    for line in lines:
        (scores if "metric" in line else rounds).append(line)
    return rounds, scores


def _is_valid(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    types = _SCORE if "metric" in line else _ROUND
    if not (line.keys() >= types.keys() and all(_fits(line[key], types[key]) for key in types)):
        return False
    return all(_fits(device, (int,)) for device in line.get("participants", ()))


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    if not isinstance(value, types) or isinstance(value, bool):  # a bool is an int
        return False
    return not isinstance(value, _NUMBER) or abs(value) < _MAX  # False for NaN
