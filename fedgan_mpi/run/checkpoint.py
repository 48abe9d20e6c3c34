"""Checkpoints: `checkpoints/round_NNNNNN/`, complete or absent, a file a device and one for the
server.

A file per device and not per rank, so that a run can go on with other ranks. Loaded with
weights_only: a checkpoint is data and cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fedgan_mpi.cluster.node import Node
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import sync_directory, write_complete

_MANIFEST = "checkpoint.json"


def checkpoint_name(round: int) -> str:
    return f"round_{round:06d}"


def save_checkpoint(
    node: Node, run: Path, round: int, progress: dict[str, Any], keep_last: int
) -> None:
    """Collective. Keep all that round `round` (a count of finished rounds) left behind.

    progress: JSON, the server's; what the train loop itself must remember. Raises AgreedError where
    a rank cannot write; older checkpoints stay then.
    """
    directory = run / "checkpoints"
    temporary = directory / f".{checkpoint_name(round)}.tmp"

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    node.link.from_server(lambda: _sentence(begin, temporary))
    hashes = {}
    problem = None
    try:
        for device in node.devices:
            name = f"device_{device.index:04d}.pt"
            hashes[name] = _write(temporary / name, device.state())
        if node.server is not None:
            hashes["server.pt"] = _write(temporary / "server.pt", node.server.state())
    except OSError as error:
        problem = f"{temporary} cannot be written: {error.strerror}"
    all_hashes = node.link.collect(hashes, problem)

    def finish() -> None:
        manifest = {
            "round": round,
            "progress": progress,
            "sha256": dict(sorted(all_hashes.items())),
        }
        write_complete(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
        final = directory / checkpoint_name(round)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_directory(directory)
        for old in sorted(directory.glob("round_*"))[:-keep_last]:
            shutil.rmtree(old)

    node.link.from_server(lambda: _sentence(finish, temporary))


def newest_checkpoint(run: Path) -> Path:
    """Raises UserError where the run has none."""
    found = sorted((run / "checkpoints").glob("round_*"))
    if not found:
        raise UserError(f"{run} has no checkpoint to go on from")
    return found[-1]


def load_checkpoint(node: Node, checkpoint: Path) -> tuple[int, dict[str, Any]]:
    """Put this rank's part back. Gives the count of finished rounds and the progress.

    Raises UserError where a file is missing or is not what the checkpoint recorded.
    """
    round, progress, hashes = _read_manifest(checkpoint)
    for device in node.devices:
        name = f"device_{device.index:04d}.pt"
        device.load_state(_read(checkpoint / name, hashes.get(name)))
    if node.server is not None:
        node.server.load_state(_read(checkpoint / "server.pt", hashes.get("server.pt")))
    return round, progress


def read_shown_generator(checkpoint: Path, whole_generator: int) -> torch.Tensor:
    """G of a checkpoint as it was shown: its first `whole_generator` numbers or their moving
    average. Raises UserError where the file is damaged or of other networks."""
    state = _read(checkpoint / "server.pt", _read_manifest(checkpoint)[2].get("server.pt"))
    shown = state.get("average", state.get("vector", torch.empty(0)))[:whole_generator]
    if len(shown) != whole_generator:
        raise UserError(f"{checkpoint} holds other networks than its run's config.toml describes")
    return shown


def _read_manifest(checkpoint: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(finished rounds, progress, SHA-256 of each file)."""
    path = checkpoint / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return manifest["round"], manifest["progress"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is missing or damaged") from None


def _write(path: Path, state: dict[str, Any]) -> str:
    buffer = BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_complete(path, content)
    return hashlib.sha256(content).hexdigest()


def _read(path: Path, sha256: str | None) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        before = f"delete {path.parent} to use the one before"
        raise UserError(f"{path} is not what its checkpoint recorded; {before}")
    try:
        state: dict[str, Any] = torch.load(BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise UserError(f"{path} is not a checkpoint of this program") from None
    return state


def _sentence(act: Any, path: Path) -> None:
    try:
        act()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
