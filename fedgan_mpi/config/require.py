"""How a section refuses a value."""

from __future__ import annotations

from fedgan_mpi.errors import UserError


def require(good: bool, key: str, value: object, right: str) -> None:
    """Raises UserError, naming the key, its value and what would be right, unless it is good."""
    if not good:
        raise UserError(f"{key} is {value!r}, but must be {right}")
