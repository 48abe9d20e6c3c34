"""The directory of shards while it is being filled: new, or an interrupted run's to go on in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgan_mpi.data import HELDOUT, MANIFEST, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import write_complete, writing

_MARK = "unfinished.json"


@contextmanager
def filling(out: Path, settings: dict[str, Any], bytes_needed: int) -> Iterator[None]:
    """Make `out`, or go on in it where a run of the same settings was interrupted.

    Where the user's input turns out to be wrong, what was written is removed again. A run that is
    killed or interrupted leaves whole shards behind, and a mark. Raises UserError where `out` holds
    anything else, cannot be written, or the disk is too small.
    """
    begun = _begin(out, settings)
    devices = int(settings["devices"])
    ours = [out / name for name in (*map(shard_name, range(1, devices + 1)), HELDOUT)]
    try:
        with writing(out):
            for leftover in out.glob(".*.tmp*"):
                leftover.unlink()
            missing = bytes_needed - sum(path.stat().st_size for path in ours if path.exists())
            if missing > (free := shutil.disk_usage(out).free):
                raise UserError(f"{out} needs {missing:,} bytes more, but {free:,} are free there")
            if begun:
                write_complete(out / _MARK, json.dumps(settings, indent=1).encode())
            yield
    except UserError:
        for path in (*ours, out / _MARK):
            path.unlink(missing_ok=True)
        _remove_if_empty(out)
        raise


def finish(out: Path) -> None:
    """Take the mark off: the directory holds all it should."""
    (out / _MARK).unlink()


def _begin(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` was made just now."""
    try:
        out.mkdir(parents=True)
        return True
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}") from None
    mark = out / _MARK
    if (out / MANIFEST).exists() or not mark.exists():
        raise UserError(f"{out} exists already; shards are never overwritten")
    try:
        begun = json.loads(mark.read_text())
    except (OSError, ValueError):
        raise UserError(f"{mark} is damaged; remove {out} and begin anew") from None
    # As they look after a round trip through JSON, which knows no tuples.
    settings = json.loads(json.dumps(settings))
    if begun != settings:
        keys = begun.keys() | settings.keys()
        others = sorted(key for key in keys if begun.get(key) != settings.get(key))
        raise UserError(
            f"{out} holds an interrupted run with another {', '.join(others)}; "
            "repeat its command to go on, or remove it"
        )
    return False


def _remove_if_empty(directory: Path) -> None:
    if not any(directory.iterdir()):
        directory.rmdir()
