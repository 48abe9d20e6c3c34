"""Types of options on the command line. Each raises ArgumentTypeError for a wrong value."""

from __future__ import annotations

import argparse
import math
from typing import Any

from PIL import ImageColor

from fedgan_mpi.files import UMASK_FORM, is_umask

_MAX_INTEGER = 2**53
_MIN_SIZE, _MAX_SIZE = 8, 2**14  # the networks need 8 pixels
_MAX_PROCESSES = 1024


def positive(text: str) -> int:
    return _integer(text, 1)


def nonnegative(text: str) -> int:
    return _integer(text, 0)


def size(text: str) -> int | tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(sides) or "X" in text:
        raise argparse.ArgumentTypeError(f"{text[:40]} must be N or HEIGHTxWIDTH, such as 48x64")
    numbers = [_integer(side, _MIN_SIZE, _MAX_SIZE) for side in sides]
    return numbers[0] if len(sides) == 1 else (numbers[0], numbers[1])


def processes(text: str) -> int:
    return _integer(text, 1, _MAX_PROCESSES)


def _integer(text: str, least: int, most: int = _MAX_INTEGER) -> int:
    # Python refuses to convert thousands of digits, and knows more digits than 0 to 9.
    if not (text.isascii() and text.isdigit() and len(text) < 100):
        raise argparse.ArgumentTypeError(f"{text[:40]} must be an integer of at least {least}")
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} must be an integer of at least {least}")
    if int(text) > most:
        raise argparse.ArgumentTypeError(f"{text} must be at most {most}")
    return int(text)


def seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return seconds


def share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0 and below 1")
    return share


def umask(text: str) -> str:
    if not is_umask(text):
        raise argparse.ArgumentTypeError(f"{text} must be {UMASK_FORM}")
    return text


def value_range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise argparse.ArgumentTypeError(f"{text} must be two numbers LOW,HIGH with LOW below HIGH")
    return low, high


def colour(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} must be the name of a colour or #rrggbb, such as white or #ffffff"
        ) from None
    return red, green, blue


def own_option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text} must have the form KEY=VALUE")
    return key, value


class Table(argparse.Action):
    """Collects KEY=VALUE arguments in a dict. A key may be given once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        key, value = values
        table = dict(getattr(namespace, self.dest))
        if key in table:
            raise argparse.ArgumentError(self, f"{key} is given twice")
        setattr(namespace, self.dest, {**table, key: value})
