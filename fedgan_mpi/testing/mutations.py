"""Damages files of a run directory, and reads them as a resumed run does.

For tests and fuzzers of readers. A reader of a damaged file may return a value or raise a UserError
of one line; anything else is a bug.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgan_mpi.checkpoint.format import encode_manifest
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import read_config
from fedgan_mpi.data import Manifest, Shard, read_shard

JOB = [
    "--run.name", "a", "--algorithm.name", "centralized", "--training.rounds", "2",
    "--model.width", "4", "--model.nz", "8", "--evaluation.every", "0", "--checkpoint.every", "2",
    "--checkpoint.keep_last", "1", "--data.devices", "2", "--evaluation.samples", "32",
]  # fmt: skip
"""Flags of a run in one process. It writes runs/a with one checkpoint, of round 2."""

Mutation = tuple[str, float, bytes]
"""Kind ("flip", "cut", "insert", "zero" or "repeat"), position from 0 to below 1, and bytes."""


def checkpoint(run: Path) -> Path:
    """Return the checkpoint that `JOB` writes."""
    return run / "checkpoints" / "round_000002"


def write_manifest(checkpoint: Path, manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint's manifest with the checksum that fits it."""
    (checkpoint / "checkpoint.json").write_bytes(encode_manifest(manifest))


def rehash(run: Path, *names: str) -> None:
    """Write the size and hash of files of the checkpoint into its manifest."""
    manifest = json.loads((checkpoint(run) / "checkpoint.json").read_text())
    for name in names:
        content = (checkpoint(run) / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256}
    write_manifest(checkpoint(run), manifest)


def mutate(content: bytes, mutations: Sequence[Mutation]) -> bytes:
    """Return the content with mutations applied in order.

    At the position, flip: XOR with the bytes; cut: drop the rest; insert: insert the bytes; zero:
    overwrite as many bytes with zeros; repeat: insert the first half of the preceding content.
    """
    data = bytearray(content)
    for kind, position, extra in mutations:
        start = int(position * len(data))
        end = start + len(extra)
        if kind == "flip":
            data[start:end] = bytes(a ^ b for a, b in zip(data[start:end], extra, strict=False))
        elif kind == "cut":
            del data[start:]
        elif kind == "insert":
            data[start:start] = extra
        elif kind == "zero":
            data[start:end] = bytes(len(extra))
        else:
            data[start:start] = data[: start // 2]
    return bytes(data)


def read_configuration(run: Path) -> Config:
    """Read config.toml."""
    return read_config(run / "config.toml")


def read_shards(run: Path) -> Shard:
    """Read the manifest and the first shard, and check one against the other."""
    manifest = Manifest.read(run / "shards")
    shard = read_shard(
        run / "shards" / "device_0001.h5", image_shape=manifest.image_shape, dtype=manifest.dtype
    )
    manifest.check_shard(shard, 1)
    return shard
