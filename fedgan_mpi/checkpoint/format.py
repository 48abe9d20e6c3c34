"""What a checkpoint is: `checkpoints/round_NNNNNN/`, complete or absent, a file a device and one
for the server, and a manifest that says what they are.

A file per device and not per rank, so that a run can go on with other ranks. Where one process
writes for all, their contents stand in one file, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgan_mpi.checkpoint.packing import restore, unpack
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.federation.server import Server
from fedgan_mpi.files import read_whole

MANIFEST = "checkpoint.json"
SERVER = "server.safetensors"
TOGETHER = "states.bin"
"""What all files would hold, where one process wrote them."""


def device_file(device: int) -> str:
    return f"device_{device:04d}.safetensors"


def files_of(rank_state: RankState) -> dict[str, Device | Server]:
    """File name -> whose state it keeps, of this rank."""
    return {
        device_file(owner.index) if isinstance(owner, Device) else SERVER: owner
        for owner in rank_state.owners
    }


def checkpoint_name(round: int) -> str:
    return f"round_{round:06d}"


def checkpoints_of(run: Path) -> list[Path]:
    """Those of a run, oldest first; a link is none."""
    directory = run / "checkpoints"
    try:
        with os.scandir(directory) as entries:
            found = [
                (int(match[1]), entry.name)
                for entry in entries
                if (match := re.fullmatch(r"round_(\d{6,})", entry.name))
                and entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for _, name in sorted(found)]


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint says of itself."""

    path: Path
    """Of the checkpoint."""
    round: int
    progress: dict[str, Any]
    configuration: dict[str, Any]
    shards_sha256: str
    files: dict[str, Any]
    """Name -> bytes and sha256; and at, the byte where it begins, where it is not a file of its
    own."""
    lost: list[str] = field(default_factory=list)
    """Names of devices that died before any checkpoint; they begin anew."""


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Raises UserError where it is missing or not one."""
    path = checkpoint / MANIFEST
    keys = ("round", "progress", "configuration", "shards_sha256", "files")
    try:
        read = json.loads(read_whole(path, follow=False))
        manifest = CheckpointManifest(
            path=checkpoint, lost=read.get("lost", []), **{key: read[key] for key in keys}
        )
        if not isinstance(manifest.lost, list):
            raise TypeError
        tables = (manifest.progress, manifest.configuration, manifest.files)
        whole = all(isinstance(table, dict) for table in tables)
        if not whole or checkpoint.name != checkpoint_name(manifest.round):
            raise ValueError
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is missing or damaged") from None
    if "server.pt" in manifest.files:
        raise UserError(f"{checkpoint} is of an older fedgan_mpi, which alone can go on from it")
    return manifest


def verify_checkpoint(rank_state: RankState, manifest: CheckpointManifest) -> None:
    """Raises UserError where a file of this rank's is missing or not what the checkpoint
    recorded."""
    for name in files_of(rank_state):
        if name not in manifest.lost:
            _read(manifest, name)


def load_checkpoint(rank_state: RankState, manifest: CheckpointManifest) -> None:
    """Put this rank's part back. Raises UserError where it is of other networks or devices."""
    try:
        for name, owner in files_of(rank_state).items():
            if name not in manifest.lost:
                owner.load_state(restore(_read(manifest, name), owner.state()))
    except (RuntimeError, TypeError, ValueError):  # a stream takes no state but its own
        raise UserError(f"{manifest.path} does not hold the states of this run") from None


def read_generator_parameters(checkpoint: Path, whole_generator: int) -> Tensor:
    """G of a checkpoint as it was shown: its first `whole_generator` numbers or their moving
    average. Raises UserError where the file is damaged or of other networks."""
    state = _read(read_manifest(checkpoint), SERVER)
    shown = state.get("average", state.get("vector"))
    if shown is None or shown.ndim != 1 or len(shown) < whole_generator:
        raise UserError(f"{checkpoint} holds other networks than its run's config.toml describes")
    return shown[:whole_generator]


def fingerprint(content: bytes | bytearray | memoryview) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_content(manifest: CheckpointManifest, name: str) -> bytes:
    """What a file of a checkpoint holds, its own or its part of all. Raises UserError where that is
    not what the checkpoint recorded."""
    recorded, (path, inverse_probability) = manifest.files.get(name), _place(manifest, name)
    try:
        content = read_whole(path, follow=False, **inverse_probability)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    at = {"at": recorded["at"]} if recorded and inverse_probability else {}
    if recorded != {**at, **fingerprint(content)}:
        whose = f" of {name}" if inverse_probability else ""
        raise UserError(f"{path} is not what its checkpoint recorded{whose}")
    return content


def _place(manifest: CheckpointManifest, name: str) -> tuple[Path, dict[str, int]]:
    """Its own file, or the stretch of the one that holds all; an empty one for what is none."""
    recorded = manifest.files.get(name)
    if not isinstance(recorded, dict) or "at" not in recorded:
        return manifest.path / name, {}
    inverse_probability = {"start": recorded["at"], "nbytes": recorded.get("bytes")}
    sound = all(type(number) is int and number >= 0 for number in inverse_probability.values())
    return manifest.path / TOGETHER, inverse_probability if sound else {"start": 0, "nbytes": 0}


def _read(manifest: CheckpointManifest, name: str) -> dict[str, Tensor]:
    content = read_content(manifest, name)
    try:
        return unpack(content)
    except ValueError:
        path, _ = _place(manifest, name)
        raise UserError(f"{path} is not a checkpoint of this program") from None
