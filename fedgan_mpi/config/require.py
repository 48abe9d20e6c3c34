"""Checks that all sections share."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TypeVar

from fedgan_mpi.errors import UserError

T = TypeVar("T")
MAX_INTEGER = 2**53
"""Larger integers are not exact as float64."""
MAX_NUMBER = 1e100


def require(condition: bool, key: str, value: object, right: str) -> None:
    """Raise UserError naming key, value and the valid values if the condition fails."""
    if not condition:
        raise UserError(f"{key} is {value!r}, but must be {right}")


def chosen(value: T | None) -> T:
    """Return the value of an option whose default, None, `choose_by_size` has replaced."""
    assert value is not None, "choose_by_size has not been called"
    return value


def require_package(package: str, what: str) -> None:
    """Raise UserError if a package is not installed. what: the option that needs it, as a clause.

    package: as Python imports it; pip's name has hyphens instead of underscores.
    """
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise UserError(
            f"{what}, but the package {name} is not installed; install it with `pip install {name}`"
        )


def require_representable(key: str, value: object) -> None:
    """Raise UserError if a value is or holds a number too large for arithmetic with 64 bits."""
    if isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            require_representable(key, each)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        size = f"an integer of {abs(value).bit_length()} bits"
        raise UserError(f"{key} is {size}, but must be from {-MAX_INTEGER} to {MAX_INTEGER}")
    elif isinstance(value, float):
        is_usable = math.isinf(value) or abs(value) <= MAX_NUMBER  # an infinite bound is no bound
        require(is_usable, key, value, f"from {-MAX_NUMBER:g} to {MAX_NUMBER:g}")
