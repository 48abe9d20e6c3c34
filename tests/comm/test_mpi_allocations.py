"""A round's communication allocates no vectors after the first round."""

from __future__ import annotations

import numpy as np
import pytest
from allocations import numpy_allocations, torch_allocations
from lossy_toys import lossy_config
from rounding import ROUNDINGS
from rounds import UNEQUAL
from torch import nn
from toys import toy_algorithm, toy_shards

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)


def allocations(function) -> int:
    return max(torch_allocations(function), numpy_allocations(function))


@pytest.mark.parametrize("transport", ["mpi", "polling", "shared_memory"])
@pytest.mark.parametrize("dtype", ["float32", *ROUNDINGS])
@pytest.mark.parametrize("average", ["reduce", "gather"])
def test_communication_allocates_nothing_after_the_first_round(comm, transport, dtype, average):
    """Vectors of 800 kB: broadcast, optimizer step, uplink, average."""
    link = Link(comm, transport=transport)
    networks = (nn.Linear(1, 100_000, bias=False), nn.Linear(200_000, 1, bias=False))
    feedback = dtype != "float32"
    config = lossy_config(dtype, feedback, precision="float32", link={"average": average})
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL), networks=networks)
    flat, uplink = algorithm.flat, algorithm.uplink
    shares = algorithm.rank_state.participation.shares(0)
    rounds = iter(range(10))

    def communicate():
        link.broadcast(flat.gan)
        uplink.begin(next(rounds))
        for device in algorithm.rank_state.devices:
            uplink.restore_received()
            device.local.optimizers[0].step()
            uplink.add(device, shares[device.index], algorithm.metrics)
        link.average(uplink, into=flat.discriminator)

    communicate()
    assert allocations(communicate) < 50_000
    # The measurement sees an allocation.
    assert allocations(lambda: flat.phi.detach().clone()) > 400_000
    assert allocations(lambda: np.ones(100_000)) > 400_000
    link.barrier()
