"""Reads stats.jsonl: one line per round, one per score. Damaged lines are refused here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from fedgan_mpi.schema import Count, Number, Positive, SchemaError, check, parse_json, read_bounded

STATS = "stats.jsonl"
_MAX_BYTES = 2**31  # a round takes about 500 bytes
Line = dict[str, Any]
AUGMENT_SIGN = "augment_sign"
"""Mean sign of D's logits on real images, of a round with adaptive augmentation."""
SECONDS_OF_DEVICE = "seconds_of_device"
"""Seconds of the local round of each participant, in the order of `participants`."""
PEAK_BYTES_HOST, PEAK_BYTES_GPU = "peak_bytes_host", "peak_bytes_gpu"
"""Largest memory of a rank so far: resident in its host, and allocated by torch on its GPU."""
ROUND_KEYS = frozenset(
    (
        "round", "participants", "skipped", "d_loss", "g_loss", "seconds", "seconds_downlink",
        "seconds_local", "seconds_uplink", "seconds_server", "wireless_seconds", "bytes_down",
        "bytes_up", "bytes_down_other", "bytes_up_other", "images_seen", "metric", "value",
        "samples", "floor", "augment_probability", AUGMENT_SIGN,
        "outliers", "device_weights", SECONDS_OF_DEVICE, PEAK_BYTES_HOST, PEAK_BYTES_GPU,
    )
)  # fmt: skip
"""Keys of the lines of rounds and scores; an algorithm logs under other names."""


class _Round(msgspec.Struct):
    """A round's line. An algorithm may add numbers with other names."""

    round: Positive
    participants: list[Positive]
    d_loss: Number | None
    g_loss: Number | None
    seconds: Number
    seconds_downlink: Number
    seconds_local: Number
    seconds_uplink: Number
    seconds_server: Number
    bytes_down: Number
    bytes_up: Number
    wireless_seconds: Number | None = None
    skipped: list[Positive] = []
    outliers: list[Positive] = []
    device_weights: list[Number] = []
    seconds_of_device: list[Number] = []
    peak_bytes_host: Count = 0
    peak_bytes_gpu: Count = 0


class _Score(msgspec.Struct):
    """A score's line."""

    round: Count
    metric: str
    value: Number | None
    floor: Number | None
    samples: Count


def parse_lines(lines: Iterable[str]) -> list[Line]:
    """Parse lines of stats.jsonl. Raises SchemaError if one is not as `Record` writes it."""
    parsed = []
    for number, text in enumerate(lines, start=1):
        try:
            line = parse_json(text)
            _check(line)
        except SchemaError as error:
            raise SchemaError(f"line {number}: {error}") from None
        parsed.append(line)
    return parsed


def read_stats(run: Path) -> tuple[list[Line], list[Line]]:
    """Return (rounds, scores) of a run.

    Raises SchemaError if stats.jsonl is damaged or incomplete, and OSError if it cannot be read.
    """
    return split(parse_lines(read_text_lines(run / STATS)))


def read_text_lines(path: Path) -> list[str]:
    """Return the lines of a text file with their ends.

    Raises SchemaError if it is not UTF-8 or too large, and OSError if it cannot be read.
    """
    try:
        text = read_bounded(path, most=_MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise SchemaError("it is not UTF-8 text") from None
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def split(lines: Iterable[Line]) -> tuple[list[Line], list[Line]]:
    """Return (rounds, scores)."""
    rounds: list[Line] = []
    scores: list[Line] = []
    for line in lines:
        (scores if "metric" in line else rounds).append(line)
    return rounds, scores


def _check(line: Any) -> None:
    """Raise SchemaError unless a line is as `Record` writes it."""
    is_score = isinstance(line, dict) and "metric" in line
    check(line, _Score if is_score else _Round)
    for key in line.keys() - ROUND_KEYS:
        check({key: line[key]}, dict[str, Number | None])
