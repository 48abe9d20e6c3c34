"""The output directory during preparation. A marker file identifies an unfinished one.

A repeated command resumes in the directory of an interrupted run with equal settings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgan_mpi.data import HELDOUT, MANIFEST, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.schema import SchemaError, check, parse_json, read_bounded

_MARKER = "unfinished.json"


@contextmanager
def output_directory(out: Path, settings: dict[str, Any], bytes_needed: int) -> Iterator[None]:
    """Create `out`, or reopen it if a run with equal settings was interrupted in it.

    After an error in the body, removes the shards again. A killed or interrupted run leaves its
    complete shards and the marker. Raises UserError if `out` holds anything else, cannot be
    written, or the disk has less than `bytes_needed` free.
    """
    created = _create(out, settings)
    devices = int(settings["devices"])
    shards = [out / name for name in (*map(shard_name, range(1, devices + 1)), HELDOUT)]
    try:
        with explain_write_errors(out):
            for leftover in out.glob(".*.tmp*"):
                leftover.unlink()
            missing = bytes_needed - sum(path.stat().st_size for path in shards if path.exists())
            if missing > (free := shutil.disk_usage(out).free):
                raise UserError(f"{out} needs {missing:,} bytes more, but the disk has {free:,}")
            if created:
                write_complete(out / _MARKER, json.dumps(settings, indent=1).encode())
            yield
    except Exception:
        for path in (*shards, out / _MARKER):
            path.unlink(missing_ok=True)
        if not any(out.iterdir()):
            out.rmdir()
        raise


def mark_finished(out: Path) -> None:
    """Remove the marker of an unfinished directory."""
    (out / _MARKER).unlink()


def _create(out: Path, settings: dict[str, Any]) -> bool:
    """Create `out` and return True, or return False for an interrupted run with equal settings.

    Raises UserError in all other cases.
    """
    try:
        out.mkdir(parents=True)
        return True
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{out} cannot be created: {error.strerror}") from None
    marker = out / _MARKER
    if (out / MANIFEST).exists() or not marker.exists():
        raise UserError(f"{out} already exists and is never overwritten; choose another --out")
    try:
        recorded = check(parse_json(read_bounded(marker)), dict[str, Any])
    except (OSError, SchemaError):
        raise UserError(f"{marker} is damaged; remove {out} and start again") from None
    settings = json.loads(json.dumps(settings))  # JSON turns tuples into lists
    if recorded != settings:
        keys = recorded.keys() | settings.keys()
        different = sorted(key for key in keys if recorded.get(key) != settings.get(key))
        raise UserError(
            f"{out} holds an interrupted run with a different {', '.join(different)}; "
            "repeat its command to resume it, or remove the directory"
        )
    return False
