"""Readers of a run's files return a value or raise a UserError for any bytes (property test)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgan_mpi.checkpoint.format import read_generator_parameters, read_manifest
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.generator_file import load
from fedgan_mpi.run.record import rewind_record
from fedgan_mpi.testing.mutations import (
    checkpoint,
    mutate,
    read_configuration,
    read_shards,
    rehash,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
"""Examples per reader."""

MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def read_server(run: Path) -> object:
    rehash(run, "server.safetensors")
    return read_generator_parameters(checkpoint(run), 10)


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoints/round_000002/checkpoint.json": lambda run: read_manifest(checkpoint(run)),
    "checkpoints/round_000002/server.safetensors": read_server,
    "config.toml": read_configuration,
    "shards/shards.json": read_shards,
    "shards/device_0001.h5": read_shards,
    "generator.json": lambda run: load(run / "generator.safetensors"),
    "generator.safetensors": lambda run: load(run / "generator.safetensors"),
    "stats.jsonl": lambda run: rewind_record(run, 2, 2) or run,
}


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(finished_run, tmp_path, name):
    run = tmp_path / "a"
    shutil.copytree(finished_run, run)
    path, manifest_path = run / name, checkpoint(run) / "checkpoint.json"
    content, manifest = path.read_bytes(), manifest_path.read_bytes()
    assert READERS[name](run) is not None
    refusals = []

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(MUTATIONS)
    def read(mutations):
        manifest_path.write_bytes(manifest)
        path.write_bytes(mutate(content, mutations))
        try:
            READERS[name](run)
        except UserError as error:
            assert "\n" not in str(error)
            refusals.append(str(error))

    read()
    assert refusals, "no mutation was noticed"
