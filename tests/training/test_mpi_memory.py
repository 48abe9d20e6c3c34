"""The memory that ranks report with the numbers of a round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import toy_algorithm, toy_config, toy_shards

from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.comm.link import Link
from fedgan_mpi.training import round_metrics
from fedgan_mpi.training.round_metrics import allreduce_metrics

pytestmark = pytest.mark.mpi(min_size=2)


def test_the_largest_memory_of_any_rank_is_reported(comm, monkeypatch):
    """Rank 1 has the most on its host, and only rank 0 has a GPU."""
    link = Link(comm)
    rank_state = toy_algorithm(link, toy_config(), toy_shards([10, 17])).rank_state
    monkeypatch.setattr(round_metrics, "peak_bytes_host", lambda: 2**40 + (link.rank == 1))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**39 + 5)
    for gpu in (False, True):
        if gpu and link.is_server:
            on_gpu = property(lambda pair: torch.device("cuda:0"))
            monkeypatch.setattr(type(rank_state.pair), "torch_device", on_gpu)
        metrics = allreduce_metrics(rank_state, 0, LocalMetrics(), np.zeros(6), lambda: None)
        assert metrics.peak_bytes_host == 2**40 + 1
        assert metrics.peak_bytes_gpu == (2**39 + 5 if gpu else 0)
