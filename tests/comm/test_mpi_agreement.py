"""Agreement between ranks: problems, results of the server, lengths of vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.errors import UserError

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.fixture(params=["mpi", "polling", "shared_memory"])
def link(request, comm):
    return Link(comm, transport=request.param)


def test_agree_raises_the_lowest_ranks_problem_on_every_rank(link):
    link.agree(None)
    with pytest.raises(AgreedError, match=r"^problem 1 \(and 1 more\)$"):
        link.agree(f"problem {link.rank}" if link.rank in (1, 2) else None)


def test_from_server_returns_results_and_raises_errors_on_every_rank(link):
    assert link.from_server(lambda: {"rank": link.rank}) == {"rank": 0}

    def raise_user_error():
        raise UserError("a mistake")

    def exit_with_status():
        raise SystemExit(3)

    with pytest.raises(AgreedError, match="a mistake"):
        link.from_server(raise_user_error)
    with pytest.raises(SystemExit) as error:
        link.from_server(exit_with_status)
    assert error.value.code == 3


def test_on_every_rank_returns_local_results_and_raises_one_ranks_error(link):
    assert link.on_every_rank(lambda: link.rank) == link.rank

    def fail_on_rank_1():
        if link.rank == 1:
            raise UserError("a mistake")

    with pytest.raises(AgreedError, match=r"^a mistake$"):
        link.on_every_rank(fail_on_rank_1)


def test_vectors_of_different_lengths_or_dtypes_are_refused(link):
    link.check_lengths(torch.zeros(5))
    with pytest.raises(AgreedError, match="rank 1 has vectors"):
        link.check_lengths(torch.zeros(5 if link.rank != 1 else 4))
    with pytest.raises(AgreedError, match="float64"):
        link.check_lengths(torch.zeros(5, dtype=torch.float64 if link.rank == 2 else torch.float32))


def test_minima_are_elementwise_and_equal_on_every_rank(link):
    numbers = np.array([link.rank, -link.rank, np.inf, 2.5])
    own = numbers.copy()
    assert link.minima(numbers).tolist() == [0, 1 - link.size, np.inf, 2.5]
    assert np.array_equal(numbers, own)
