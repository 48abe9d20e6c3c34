"""The schema of checkpoint.json."""

from __future__ import annotations

from typing import Any

import msgspec

from fedgan_mpi.schema import Count, Positive


class CheckpointFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The content of checkpoint.json; CheckpointManifest describes the keys."""

    format: Positive = 1
    round: Count
    progress: dict[str, Any]
    configuration: dict[str, dict[str, Any]]
    shards_sha256: str
    files: dict[str, Any]
    lost: list[str] = []
    versions: dict[str, str] = {}
    """Of the packages that wrote the checkpoint; for the user only."""
