"""The check that all sections share."""

from __future__ import annotations

from fedgan_mpi.errors import UserError


def require(condition: bool, key: str, value: object, right: str) -> None:
    """Raise UserError naming key, value and the valid values if the condition fails."""
    if not condition:
        raise UserError(f"{key} is {value!r}, but must be {right}")
