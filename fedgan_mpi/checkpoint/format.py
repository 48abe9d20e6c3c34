"""The format of a checkpoint, `checkpoints/round_NNNNNN/`, and reading it.

A checkpoint has one safetensors file per device, one for the server, and a manifest. The manifest
has the size and SHA-256 of each file, and a checksum of itself. Files belong to devices, not to
ranks, so that a run can resume on another number of ranks. The training loop's own state is JSON
in the manifest; its keys are unknown here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgan_mpi.checkpoint.manifest_schema import CheckpointFile
from fedgan_mpi.checkpoint.packing import restore, unpack
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.federation.server import Server
from fedgan_mpi.files import read_regular_file
from fedgan_mpi.schema import SchemaError, check, parse_json, read_bounded, shorten

FORMAT = 3
"""The format that is written. Formats 1 and 2, which are still read, have no checksum of the
manifest. Format 1 has no version number, and may have all states in one file at offsets `at`."""
_READABLE = (1, 2, FORMAT)
MANIFEST = "checkpoint.json"
SERVER = "server.safetensors"
PACKED = "states.bin"
"""The file of all states in format 1."""


def device_file(device: int) -> str:
    return f"device_{device:04d}.safetensors"


def local_files(rank_state: RankState) -> dict[str, Device | Server]:
    """Return file name -> owner of the state, for the devices and the server of this rank."""
    return {
        device_file(owner.index) if isinstance(owner, Device) else SERVER: owner
        for owner in rank_state.owners
    }


def checkpoint_name(round: int) -> str:
    return f"round_{round:06d}"


def checkpoints_of(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first. Links are ignored."""
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
    """The content of checkpoint.json."""

    path: Path
    """The checkpoint's directory."""
    round: int
    progress: dict[str, Any]
    """State of the training loop."""
    configuration: dict[str, Any]
    shards_sha256: str
    files: dict[str, Any]
    """File name -> {"bytes", "sha256"}; in format 1 also "at", the offset in states.bin."""
    lost: list[str] = field(default_factory=list)
    """Files of devices that died before the first checkpoint. They restart from scratch."""


def encode_manifest(table: Mapping[str, Any]) -> bytes:
    """Return the content of checkpoint.json: a JSON object with its checksum added or renewed."""
    # The checksum covers the parsed values, so that an editor may change the white space.
    parsed = json.loads(json.dumps({**table, "sha256": None}))
    del parsed["sha256"]
    return json.dumps({**parsed, "sha256": _checksum(parsed)}).encode()


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises UserError if it is missing, damaged, changed by hand or of another format.
    """
    path = checkpoint / MANIFEST
    try:
        table = parse_json(read_bounded(path, follow_links=False), allow_nan=True)
        if not isinstance(table, dict):
            raise SchemaError("it is not a table")
        files = table.get("files")
        is_old = isinstance(files, dict) and "server.pt" in files
        version = 0 if is_old else table.get("format", 1)
        if version not in _READABLE:
            raise UserError(
                f"{path} has format {shorten(version)}, but this fedgan_mpi reads formats 1 "
                f"to {FORMAT}"
            )
        checksum = table.pop("sha256", None)
        if checksum != (_checksum(table) if version == FORMAT else None):
            raise UserError(f"{path} is damaged or was changed: its SHA-256 is not the one in it")
        content = check(table, CheckpointFile)
        if checkpoint.name != checkpoint_name(content.round):
            raise SchemaError(f"round is {content.round}, but the directory is {checkpoint.name}")
    except OSError as error:
        raise UserError(f"{path} is missing or damaged: {error.strerror}") from None
    except (SchemaError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from None
    return CheckpointManifest(
        path=checkpoint,
        round=content.round,
        progress=content.progress,
        configuration=content.configuration,
        shards_sha256=content.shards_sha256,
        files=content.files,
        lost=content.lost,
    )


def _checksum(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def read_states(rank_state: RankState, manifest: CheckpointManifest) -> dict[str, dict[str, Any]]:
    """Return file name -> state of this rank's devices and server. Changes nothing.

    Files of lost devices are left out. Raises UserError naming the first file that is damaged, or
    if the checkpoint is of other networks or devices.
    """
    states = {}
    for name, owner in local_files(rank_state).items():
        if name in manifest.lost:
            continue
        tensors = read_tensors(manifest, name)
        try:
            states[name] = restore(tensors, owner.state())
            stream = torch.Generator(owner.noise_stream.device)
            stream.set_state(states[name]["noise_stream"])
        except (RuntimeError, TypeError, ValueError):  # also from torch, for an invalid stream
            raise _other_states(manifest) from None
    return states


def load_states(
    rank_state: RankState, manifest: CheckpointManifest, states: Mapping[str, dict[str, Any]]
) -> None:
    """Overwrite the state of this rank's devices and server with a result of `read_states`.

    Raises UserError if an optimizer refuses its moments.
    """
    try:
        for name, owner in local_files(rank_state).items():
            if name in states:
                owner.load_state(states[name])
    except (RuntimeError, TypeError, ValueError):
        raise _other_states(manifest) from None


def _other_states(manifest: CheckpointManifest) -> UserError:
    return UserError(f"{manifest.path} does not hold the states of this run")


def read_generator_parameters(checkpoint: Path, length: int) -> Tensor:
    """Return the generator that is scored, (length,): its moving average if one is kept.

    length: number of parameters and statistics of G. Raises UserError if the file is damaged or of
    other networks.
    """
    state = read_tensors(read_manifest(checkpoint), SERVER)
    vector = state.get("average", state.get("vector"))
    if vector is None or vector.ndim != 1 or len(vector) < length:
        raise UserError(f"{checkpoint} holds other networks than its run's config.toml describes")
    return vector[:length]


def fingerprint(content: bytes | bytearray) -> dict[str, Any]:
    """Return a file's entry in the manifest."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_content(manifest: CheckpointManifest, name: str) -> bytes:
    """Return the bytes of a state. Raises UserError if they do not match the manifest."""
    entry, (path, byte_range) = manifest.files.get(name), _locate(manifest, name)
    try:
        content = read_regular_file(path, follow_links=False, **byte_range or _bounds(entry))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    offset = {"at": entry["at"]} if entry and byte_range else {}
    if entry != {**offset, **fingerprint(content)}:
        owner = f" of {name}" if byte_range else ""
        raise UserError(f"{path} is not what its checkpoint recorded{owner}")
    return content


def _locate(manifest: CheckpointManifest, name: str) -> tuple[Path, dict[str, int]]:
    """Return the path of a state's file, and its byte range if it shares the file.

    The range is keywords of `read_regular_file`. Its length is 0 if the manifest's numbers are
    impossible.
    """
    entry = manifest.files.get(name)
    if not isinstance(entry, dict) or "at" not in entry:
        return manifest.path / name, {}
    byte_range = {"start": entry["at"], "nbytes": entry.get("bytes")}
    valid = all(type(number) is int and number >= 0 for number in byte_range.values())
    return manifest.path / PACKED, byte_range if valid else {"start": 0, "nbytes": 0}


def _bounds(entry: Any) -> dict[str, int]:
    """Return keywords of `read_regular_file`: one byte more than recorded, to find longer files."""
    nbytes = entry.get("bytes") if isinstance(entry, dict) else None
    return {"start": 0, "nbytes": nbytes + 1 if type(nbytes) is int and nbytes >= 0 else 0}


def read_tensors(manifest: CheckpointManifest, name: str) -> dict[str, Tensor]:
    """Return the tensors of a state by name. Raises UserError if the file is damaged."""
    content = read_content(manifest, name)
    try:
        return unpack(content)
    except ValueError:
        path, _ = _locate(manifest, name)
        raise UserError(f"{path} is not a checkpoint of this program") from None
