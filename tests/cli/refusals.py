"""The check of a refused command line."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fedgan_mpi.cli.commands import parse
from fedgan_mpi.errors import UserError


def check_refusal(arguments: Sequence[str], sentence: str) -> str:
    """Check that a command line is refused in one line that has this sentence. Return the line."""
    with pytest.raises(UserError) as error:
        parse(list(arguments))
    message = str(error.value)
    assert sentence in message
    assert "\n" not in message
    return message
