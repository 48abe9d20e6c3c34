"""Runs and shards that several files of job tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from interrupted_jobs import FLAGS

from fedgan_mpi.testing.jobs import run_job


@pytest.fixture(scope="session")
def uninterrupted_run(tmp_path_factory) -> Path:
    """The run that interrupted jobs must equal."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    done = run_job(3, "--run.name", "a", *FLAGS, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "a"


@pytest.fixture(scope="session")
def unlabelled_shards(tmp_path_factory) -> Path:
    """Three shards of six images of 16×16 pixels, without labels."""
    from fedgan_mpi.data import Manifest, write_shard

    directory = tmp_path_factory.mktemp("shards") / "shards"
    directory.mkdir()
    stream = np.random.default_rng(0)
    hashes = []
    for device in (1, 2, 3):
        images = stream.integers(0, 256, (6, 1, 16, 16), dtype=np.uint8)
        path = directory / f"device_{device:04d}.h5"
        hashes.append(write_shard(path, images, None, np.arange(6), {"device": device}))
    Manifest(
        format_version=1, dataset="toy", image_shape=(1, 16, 16), class_names=[],
        partition={"name": "iid"}, seed=0, devices=3, images=[6, 6, 6], histograms=[[], [], []],
        pixels_sha256=hashes, sha256="x", heldout=None, heldout_images=0, features=None,
    ).write(directory)  # fmt: skip
    return directory


@pytest.fixture
def run():
    """Runs a job on the ranks of this test. Rank 0 runs the test itself; the others skip it."""
    from in_process_jobs import InProcessJobs
    from mpi4py import MPI  # only here, because its import starts MPI

    jobs = InProcessJobs()
    if MPI.COMM_WORLD.rank > 0:
        jobs.serve()
        pytest.skip("rank 0 runs the test")
    yield jobs.run
    jobs.close()
