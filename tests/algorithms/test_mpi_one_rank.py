"""A job of one rank, which is the server and hosts all devices, against jobs of several ranks."""

from __future__ import annotations

import pytest
import torch
from rounds import FEDERATED, UNEQUAL, link_of
from toys import play, toy_algorithm, toy_config, toy_shards

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

CASES = [
    *({"algorithm": {"name": name}} for name in FEDERATED),
    {"algorithm": {"schedule": "parallel"}},
    {"algorithm": {"name": "ensemble", "schedule": "parallel"}},
    {"algorithm": {"batchnorm": "recalibrate"}},
    {"algorithm": {"moments": "averaged"}},
    {"algorithm": {"name": "fegan", "preset": "ifl"}},
    {"training": {"non_finite": "skip"}},
    {"model": {"ema": 0.9}},
    *(
        {"algorithm": {"name": name}, "link": {"wire_dtype": "bfloat16", "error_feedback": keep}}
        for name, keep in (
            ("ren", False),
            ("ren", True),
            ("fedgan", True),
            ("mdgan", False),
            ("ensemble", False),
        )
    ),
]


def name_of(case: dict) -> str:
    values = [str(value) for section in case.values() for value in section.values()]
    return "-".join(values)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_one_rank_has_the_bits_of_several(comm, case):
    """Parameters of the server, its statistics and the losses; some devices are absent."""
    sections = {key: dict(value) for key, value in case.items()}
    sections["link"] = {"average": "gather", "wire_dtype": "float32", **sections.get("link", {})}
    sections["training"] = {"precision": "float32", **sections.get("training", {})}
    config = toy_config(participation={"policy": "round_robin", "count": 3}, **sections)
    results = []
    for ranks in (1, 3):
        link = link_of(comm, ranks)
        if link is not None:
            algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
            lines = play(algorithm, 5)
            losses = [(line["d_loss"], line["g_loss"], line["bytes_up"]) for line in lines]
            ema = algorithm.server.ema if algorithm.server else None
            results.append((losses, algorithm.flat.vector.clone(), ema))
        comm.barrier()
    if comm.rank == 0:
        (losses, vector, ema), (other_losses, other_vector, other_ema) = results
        assert losses == other_losses
        kept = algorithm.config.traits.devices_keep_discriminator
        size = algorithm.flat.whole_generator.numel() if kept else vector.numel()
        assert torch.equal(vector[:size], other_vector[:size])
        assert ema is None or torch.equal(ema, other_ema)


def test_a_job_of_one_rank_sends_nothing(comm):
    link = link_of(comm, 1)
    if link is not None:
        algorithm = toy_algorithm(link, toy_config(), toy_shards([8, 9]))
        (line,) = play(algorithm, 1)
        several = line["bytes_down"], line["bytes_up"]
        assert min(several) > 0  # the payload of the method, whatever carries it
        assert not algorithm.devices[1].early_start.has_started
        assert isinstance(link, Link) and link.transport == "mpi"
    comm.barrier()
