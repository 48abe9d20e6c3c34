"""The output directory during preparation. A marker file identifies an unfinished one.

A repeated command resumes in the directory of an interrupted run with equal settings.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedgan_mpi.data import HELDOUT, MANIFEST, shard_name
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.schema import SchemaError, check, parse_json, read_bounded

_MARKER = "unfinished.json"
_LOCK_SECONDS, _LOCK_ATTEMPTS = 3.0, 30


@contextmanager
def locked(out: Path) -> Iterator[bool]:
    """Create `out` unless it exists, and lock it. Yield whether it was created.

    Raises UserError if another process writes it. File systems without locks are not protected.
    """
    created = False
    try:
        out.mkdir(parents=True)
        created = True
    except FileExistsError:
        pass
    except OSError as error:
        raise UserError(f"{out} cannot be created: {error.strerror}") from None
    try:
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        raise _exists(out) from None
    try:
        # A directory needs no lock file, which would remain.
        _wait_for_lock(out, descriptor)
        yield created
    finally:
        with suppress(OSError):  # decoding processes have the descriptor as well
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait_for_lock(out: Path, descriptor: int) -> None:
    """Wait a little: decoding processes of a killed command end a moment after it."""
    for attempts_left in reversed(range(_LOCK_ATTEMPTS)):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not attempts_left:
                raise UserError(
                    f"{out} is being written by another data_prep; wait until it ends, or choose "
                    "another --out"
                ) from None
            time.sleep(_LOCK_SECONDS / _LOCK_ATTEMPTS)
        except OSError:
            return None


@contextmanager
def output_directory(
    out: Path, settings: dict[str, Any], bytes_needed: int, *, created: bool | None = None
) -> Iterator[None]:
    """Prepare a directory of `locked`, new or of an interrupted run with equal settings.

    created: as `locked` says; None: lock it here.

    After an error in the body, removes the shards again. A killed or interrupted run leaves its
    complete shards and the marker. Raises UserError if `out` holds anything else, cannot be
    written, or the disk has less than `bytes_needed` free.
    """
    if created is None:
        with (
            locked(out) as is_new,
            output_directory(out, settings, bytes_needed, created=is_new),
        ):
            yield
        return
    if not created:
        _check_interrupted(out, settings)
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


def _exists(out: Path) -> UserError:
    return UserError(f"{out} already exists and is never overwritten; choose another --out")


def _check_interrupted(out: Path, settings: dict[str, Any]) -> None:
    """Raise UserError unless `out` holds an interrupted run with equal settings."""
    marker = out / _MARKER
    if (out / MANIFEST).exists() or not marker.exists():
        raise _exists(out)
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
