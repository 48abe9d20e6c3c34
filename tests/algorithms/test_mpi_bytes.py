"""Byte counts of rounds against the formulas of the papers."""

from __future__ import annotations

import pytest
from rounds import FEDERATED, UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_networks, toy_shards

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

BYTES = 8  # per float64
STATISTICS_G, STATISTICS_D = 2 * 16, 2 * 8  # means and variances


def count_parameters() -> tuple[int, int]:
    """Return |G| and |D|."""
    theta, phi = (sum(p.numel() for p in network.parameters()) for network in toy_networks())
    return theta, phi


@pytest.mark.parametrize("batchnorm", ["average", "local"])
@pytest.mark.parametrize("moments", ["persistent", "averaged"])
def test_ren_sends_both_networks_down_and_the_discriminator_up(comm, batchnorm, moments):
    """q(|G|+|D|) and q|D| per participant. Statistics and averaged moments are counted apart."""
    link = Link(comm)
    config = toy_config(
        algorithm={"batchnorm": batchnorm, "moments": moments},
        participation={"policy": "round_robin", "count": 3},
    )
    (line,) = play(toy_algorithm(link, config, toy_shards(UNEQUAL)), 1)
    theta, phi = count_parameters()
    assert line["bytes_down"] == 3 * BYTES * (theta + phi)
    assert line["bytes_up"] == 3 * BYTES * phi
    statistics_g, statistics_d = (STATISTICS_G, STATISTICS_D) if batchnorm == "average" else (0, 0)
    moments_d = 2 * phi if moments == "averaged" else 0
    assert line["bytes_down_other"] == 3 * BYTES * (statistics_g + statistics_d + moments_d)
    assert line["bytes_up_other"] == 3 * BYTES * (statistics_d + moments_d)


@pytest.mark.parametrize("name", FEDERATED)
def test_bytes_equal_the_formulas(comm, name):
    link = Link(comm)
    config = toy_config(algorithm={"name": name}, participation={"policy": "random", "count": 3})
    lines = play(toy_algorithm(link, config, toy_shards(UNEQUAL)), 6)
    theta, phi = count_parameters()
    b, d, N = 4, 16, 3  # images in a batch, numbers in an image, participants
    down, up = {
        "ren": (theta + phi, phi),
        "dp_fedavg_gan": (theta + phi, phi),
        "fedgan": (theta + phi, theta + phi),
        "fegan": (theta + phi, theta + phi),
        "fess_gda": (theta + phi, theta + phi),
        "mdgan": (2 * b * d, b * d),
        "uagan": (b * d, b * (d + 1)),
        "ensemble": (theta, phi),
    }[name]
    swaps = 0
    for line in lines:
        assert line["bytes_down"] == BYTES * down * N
        is_swap = name == "mdgan" and line["bytes_up"] != BYTES * up * N
        swaps += is_swap
        assert line["bytes_up"] == BYTES * (up + phi * is_swap) * N
        statistics = STATISTICS_G + STATISTICS_D
        statistics_down, statistics_up = {
            "ren": (statistics, STATISTICS_D),
            "fedgan": (statistics, statistics),
            "fegan": (statistics, statistics),
            "fess_gda": (statistics, statistics),
            "mdgan": (0, STATISTICS_D * is_swap),
            "ensemble": (STATISTICS_G, STATISTICS_D),
        }.get(name, (0, 0))
        assert line["bytes_down_other"] == BYTES * statistics_down * N
        assert line["bytes_up_other"] == BYTES * statistics_up * N
    # The devices see all 52 images, 12 per round, in four rounds.
    assert swaps == (1 if name == "mdgan" else 0)
