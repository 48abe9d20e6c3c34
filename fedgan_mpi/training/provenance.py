"""Describes a job in its run directory: the configuration, and the hardware of each rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.hardware.description import describe_hardware, format_ranges
from fedgan_mpi.run.directory import write_config, write_devices
from fedgan_mpi.training.setup import RunContext


def describe_run(rank_state: RankState, context: RunContext) -> None:
    """Write config.toml and devices.json. Collective."""
    link = rank_state.link
    own = {
        **describe_hardware(rank_state.pair.torch_device),
        "route": "; ".join(link.routes) or "host memory, where the vectors are",
        "mpi": link.library(),
    }
    ranks = link.allgather(own)
    start = {} if context.start is None else {"start": context.start.provenance}
    provenance = {
        "ranks": link.size,
        "shards_sha256": context.manifest.sha256,
        **start,
        "placement": group_ranks(ranks),
    }

    def write() -> None:
        write_config(context.run, context.config, provenance)
        write_devices(context.run, context.manifest)

    link.from_server(write)


def group_ranks(descriptions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one table for all ranks with equal descriptions, in the order of their first ranks."""
    groups: dict[str, list[int]] = {}
    for rank, description in enumerate(descriptions):
        groups.setdefault(json.dumps(description), []).append(rank)
    return [{"ranks": format_ranges(ranks), **json.loads(key)} for key, ranks in groups.items()]
