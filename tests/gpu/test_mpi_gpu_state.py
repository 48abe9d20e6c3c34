"""Checkpoints of ranks with GPUs; several ranks share a GPU if necessary.

Run them with `mpirun -n 3 python -m pytest --with-mpi -m gpu`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_states import equal, states
from rounds import UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.checkpoint.format import (
    checkpoints_of,
    load_states,
    read_manifest,
    read_states,
)
from fedgan_mpi.checkpoint.writer import CheckpointWriter
from fedgan_mpi.comm.link import Link
from fedgan_mpi.run.stats import STATS

pytestmark = [
    pytest.mark.mpi(min_size=3),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

ABOUT = {"configuration": {}, "shards_sha256": ""}


def choose_gpu(link: Link) -> str:
    """Make this rank's GPU the current device and return its name."""
    torch_device = f"cuda:{link.local_rank % torch.cuda.device_count()}"
    torch.cuda.set_device(torch_device)
    return torch_device


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("name", ["ren", "fedgan"])
def test_a_checkpoint_of_gpus_continues_the_run(comm, mpi_tmp_path, name, graphs):
    """In new networks, and in those whose captured steps read fixed addresses."""
    link = Link(comm)
    torch_device, run = choose_gpu(link), Path(mpi_tmp_path)
    config = toy_config(algorithm={"name": name}, training={"graphs": graphs})

    def new_algorithm():
        return toy_algorithm(link, config, toy_shards(UNEQUAL), torch_device=torch_device)

    algorithm, messages = new_algorithm(), []
    if link.is_server:
        (run / STATS).touch()
    writer = CheckpointWriter(
        algorithm.rank_state, run, keep_last=1, about=ABOUT, log=messages.append
    )
    play(algorithm, 4)
    expected = states(algorithm.rank_state)
    writer.begin(4, {"round": 4})
    play(algorithm, 4, start=4)  # while the checkpoint is written
    assert writer.complete() is None and messages == []
    assert not equal(states(algorithm.rank_state), expected)
    uninterrupted = vectors(algorithm)

    (checkpoint,) = checkpoints_of(run)
    manifest = read_manifest(checkpoint)
    for resumed in (new_algorithm(), algorithm):
        load_states(resumed.rank_state, manifest, read_states(resumed.rank_state, manifest))
        assert equal(states(resumed.rank_state), expected)
        link.discard_prefetched()
        play(resumed, 4, start=4)
        for found, wanted in zip(vectors(resumed), uninterrupted, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
