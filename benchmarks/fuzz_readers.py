"""The files of a run directory: how the fuzzer damages each of them, and the code that reads it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from fedgan_mpi.checkpoint.format import encode_manifest
from fedgan_mpi.errors import UserError
from fedgan_mpi.testing.mutations import (
    checkpoint,
    mutate,
    read_configuration,
    read_shards,
    rehash,
)

Reader = Callable[[Path], object]
"""Reads a file of the run directory."""
Damage = Callable[[bytes, random.Random], bytes]
"""Returns damaged content."""
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 10**400, 1e308, float("nan"), "", "x", "../../x", "\x00", "é" * 99,
    [], {}, [[]], {"": {}},
)  # fmt: skip
"""JSON values that replace others."""


def file_names(run: Path) -> list[str]:
    """Return the files of a run that are damaged, in the order of `make_readers`."""
    features = json.loads((run / "shards/shards.json").read_text())["features"]
    return [
        "config.toml", "stats.jsonl", "checkpoints/round_000002/checkpoint.json",
        "checkpoints/round_000002/server.safetensors",
        "checkpoints/round_000002/device_0001.safetensors",
        "shards/shards.json", "shards/device_0001.h5", "shards/heldout.h5",
        f"shards/{features}", "generator.json", "generator.safetensors",
    ]  # fmt: skip


# ---------------------------------------------------------------- damage


def damage_bytes(content: bytes, stream: random.Random) -> bytes:
    """Apply one to four mutations."""
    kinds = ["flip", "cut", "insert", "zero", "repeat"]
    weights = [6, 1, 3, 3, 1]
    mutations = [
        (kind, stream.random(), stream.randbytes(stream.randint(1, 8)))
        for kind in stream.choices(kinds, weights, k=stream.randint(1, 4))
    ]
    return mutate(content, mutations)


def damage_value(value: Any, stream: random.Random) -> Any:
    """Return a JSON value in which one node is removed, renamed or replaced."""
    has_children = isinstance(value, dict | list) and len(value) > 0
    if not has_children or stream.random() < 0.1:
        return stream.choice(HOSTILE)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, copy = stream.choice(keys), value.copy()
    kind = stream.random()
    if kind < 0.1:
        del copy[key]
    elif kind < 0.15 and isinstance(copy, dict):
        copy[str(stream.choice(HOSTILE))] = copy.pop(key)
    else:
        copy[key] = damage_value(copy[key], stream)
    return copy


def damage_json(content: bytes, stream: random.Random) -> bytes:
    return json.dumps(damage_value(json.loads(content), stream)).encode()


def damage_manifest(content: bytes, stream: random.Random) -> bytes:
    """Damage a value in a checkpoint's manifest, with a checksum that fits."""
    damaged = json.loads(damage_json(content, stream))
    return encode_manifest(damaged if isinstance(damaged, dict) else {"round": damaged})


def damage_lines(content: bytes, stream: random.Random) -> bytes:
    """Damage a value in one line of a JSON Lines file."""
    lines = content.splitlines(keepends=True)
    index = stream.randrange(len(lines))
    lines[index] = damage_json(lines[index], stream) + b"\n"
    return b"".join(lines)


def damage_header(content: bytes, stream: random.Random) -> bytes:
    """Damage the header of a safetensors file, by value or by bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = stream.choice([damage_json, damage_bytes])(content[8:start], stream)
    return len(header).to_bytes(8, "little") + header + content[start:]


# ---------------------------------------------------------------- readers


def make_readers(run: Path) -> dict[str, tuple[Reader, list[Damage]]]:
    """Return {file: (reader, kinds of damage)}. Imports MPI and prepares a resume of the run."""
    from mpi4py import MPI

    from fedgan_mpi.checkpoint.format import load_states, read_manifest, read_states
    from fedgan_mpi.cli.parser import parse_train
    from fedgan_mpi.comm.link import Link
    from fedgan_mpi.data import read_shard
    from fedgan_mpi.evaluation.features import read_extractor
    from fedgan_mpi.federation.networks import build_networks
    from fedgan_mpi.federation.rank import build_rank_state
    from fedgan_mpi.report import history
    from fedgan_mpi.report.history import read_history
    from fedgan_mpi.report.watch import describe
    from fedgan_mpi.run.generator_file import load
    from fedgan_mpi.run.record import rewind_record
    from fedgan_mpi.training.resume import check_experiment, read_state
    from fedgan_mpi.training.setup import prepare_run

    link = Link(MPI.COMM_SELF)
    command = parse_train(["--resume", str(run), "--training.rounds", "3"])
    context = prepare_run(link, command.config, resume=command.resume)
    shape, images = context.manifest.image_shape, [sum(context.manifest.images)]
    histograms = [np.sum(context.manifest.histograms, 0).tolist()]
    pair = build_networks(context.config, shape, histogram=histograms[0])
    rank_state = build_rank_state(link, context.config, pair, context.shards, images, histograms)
    extractor = context.manifest.features
    assert extractor is not None

    def resume(run: Path) -> object:
        manifest = read_manifest(checkpoint(run))
        read_state(manifest, context.manifest.devices)
        check_experiment(manifest, context)
        load_states(rank_state, manifest, read_states(rank_state, manifest))
        return manifest

    def resume_with_right_hashes(run: Path) -> object:
        rehash(run, "server.safetensors", "device_0001.safetensors")
        return resume(run)

    def read_statistics(run: Path) -> object:
        for read in (read_history, partial(describe, rounds=3, finished=False)):
            try:
                read(run)
            except UserError as error:
                assert "\n" not in str(error)
        rewind_record(run, done=2, scored=2)
        return run

    def read_heldout(run: Path) -> object:
        return read_shard(run / "shards" / "heldout.h5", image_shape=shape)

    def read_features(run: Path) -> object:
        return read_extractor(run / "shards" / extractor)

    def read_generator(run: Path) -> object:
        return load(run / "generator.safetensors")

    # Reading the configuration takes a hundred times as long as the rest of a history.
    history.read_config = cache(history.read_config)
    by_bytes: list[Damage] = [damage_bytes]
    by_json: list[Damage] = [damage_json, damage_json, damage_bytes]
    by_header: list[Damage] = [damage_header, damage_header, damage_bytes]
    readers: list[tuple[Reader, list[Damage]]] = [
        (read_configuration, by_bytes),
        (read_statistics, [damage_lines, damage_lines, damage_bytes]),
        (resume, [damage_manifest, damage_json, damage_bytes]),
        (resume_with_right_hashes, by_header),
        (resume_with_right_hashes, by_header),
        (read_shards, by_json),
        (read_shards, by_bytes),
        (read_heldout, by_bytes),
        (read_features, by_header),
        (read_generator, by_json),
        (read_generator, by_header),
    ]
    return dict(zip(file_names(run), readers, strict=True))
