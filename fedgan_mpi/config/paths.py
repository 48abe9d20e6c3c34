"""Paths that users write: `~` is the home directory, as in a shell.

A shell expands `~` neither in a TOML file nor after the equals sign of `--key=~/path`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

INPUTS = ("data.shards", "data.heldout", "evaluation.inception_weights", "training.start")
"""Keys of files and directories that are only read."""


def expand_home(text: str) -> str:
    """Return a path with its home directory in the place of `~` or `~user`."""
    return text if "\0" in text else os.path.expanduser(text)


def user_path(text: str) -> Path:
    """Return the path that a user has written."""
    return Path(expand_home(text))


def set_expanded(section: Any, *keys: str) -> None:
    """Expand `~` in keys of a frozen section of the configuration, in place."""
    for key in keys:
        if (value := getattr(section, key)) is not None:
            object.__setattr__(section, key, expand_home(value))


def relative_to_file(key: str, value: Any, file: Path) -> Any:
    """Return a value of a TOML file; a path that exists beside the file only is taken from there.

    Other paths stay relative to the working directory, where outputs go.
    """
    if key not in INPUTS or not isinstance(value, str):
        return value
    path = user_path(value)
    beside = file.parent / path
    return str(beside) if not path.exists() and beside.exists() else value
