"""Lists the files below a folder, through links, without walking in circles."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from data_prep.sources.leftovers import is_leftover_file, is_leftover_folder
from fedgan_mpi.errors import UserError

_MOST_VISITS = 100
"""How often links may lead to one folder. A hostile tree of links would never end."""


def list_files(root: Path) -> tuple[list[str], Counter[str]]:
    """Return the files below a folder, sorted, and the omitted ones: name -> how often.

    Links to files and folders are followed, except links to a folder that contains them. Raises
    UserError for a folder that cannot be read.
    """
    names: list[str] = []
    left_out: Counter[str] = Counter()
    visits: Counter[tuple[int, int]] = Counter()
    pending = [("", frozenset([_identity(root)]))]
    while pending:
        below, above = pending.pop()
        for entry in _scan(root / below):
            name = f"{below}{entry.name}"
            if not _is_folder(entry):
                if is_leftover_file(entry.name):
                    left_out[entry.name] += 1
                else:
                    names.append(name)
                continue
            if is_leftover_folder(entry.name):
                left_out[f"{entry.name}/"] += 1
                continue
            identity = _identity(root / name)
            if identity in above:
                left_out[f"{name}, a link to a folder above it"] += 1
                continue
            visits[identity] += 1
            if visits[identity] > _MOST_VISITS:
                raise UserError(
                    f"{root / name}: links lead to this folder more than {_MOST_VISITS} times"
                )
            pending.append((f"{name}/", above | {identity}))
    return sorted(names), left_out


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # as a file, it is named when it cannot be read


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
