"""Sums in device order (`link.average = "gather"`): the bits do not depend on the ranks."""

from __future__ import annotations

import pytest
import torch
from rounds import FEDERATED, UNEQUAL, link_of
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

pytestmark = pytest.mark.mpi(min_size=3)

AUGMENT = {
    "augment": ("flip", "color", "translation", "cutout"),
    "augment_target": 0.1,
    "augment_images": 200,
    "discriminator_lr": 0.3,
}
CASES = [
    *({"algorithm": {"name": "ren", "schedule": schedule}} for schedule in ("serial", "parallel")),
    {"algorithm": {"name": "ensemble", "schedule": "parallel"}},
    *(
        {
            "algorithm": {"name": name, **({"preset": "ifl"} if name == "fegan" else {})},
            "participation": {"policy": "round_robin", "count": 3},
        }
        for name in FEDERATED
    ),
    *(
        {"algorithm": {"name": name}, "training": AUGMENT}
        for name in ("ren", "mdgan", "uagan", "ensemble")
    ),
    {"algorithm": {"name": "fedgan"}, "training": {**AUGMENT, "augment_target": 0.0}},
]


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: "-".join((*case["algorithm"].values(), *case.get("training", ()))),
)
def test_gather_is_bitwise_the_same_for_any_number_of_ranks(comm, case):
    """In float32, with five devices on 2, 3, … ranks, over every transport."""
    config = toy_config(
        **{
            **case,
            "link": {"average": "gather", "wire_dtype": "float32"},
            "training": {"precision": "float32", **case.get("training", {})},
        }
    )
    results = []
    for ranks in range(2, comm.size + 1):
        for transport in ("mpi", "polling", "shared_memory"):
            link = link_of(comm, ranks, transport=transport)
            if link is not None:
                algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
                keys = ("d_loss", "g_loss", "augment_probability", "augment_sign")
                losses = [[line.get(key) for key in keys] for line in play(algorithm, 6)]
                p = [loss[2] for loss in losses]
                assert (len(set(p)) > 1) == (config.training.augment_target > 0)
                results.append((*vectors(algorithm), losses))
            comm.barrier()
    if comm.rank == 0:
        assert len(results) == 3 * (comm.size - 1)
        for theta, phi, losses in results[1:]:
            assert torch.equal(theta, results[0][0]) and torch.equal(phi, results[0][1])
            assert losses == results[0][2]
