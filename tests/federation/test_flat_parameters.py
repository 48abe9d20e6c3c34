"""The flat vector of a rank: views, the sections that are sent, and the order of statistics."""

from __future__ import annotations

import copy

import pytest
from toys import toy_networks

from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.nn.registry import count_parameters


@pytest.mark.parametrize("moments", [False, True])
def test_networks_are_views_of_the_vector(moments):
    G, D = toy_networks()
    before = [copy.deepcopy(network.state_dict()) for network in (G, D)]
    flat = FlatParameters(G, D, with_moments_of=("G", "D") if moments else ())
    for network, state in zip((G, D), before, strict=True):
        for name, value in network.state_dict().items():
            assert value.equal(state[name])  # packing changes no value
    flat.vector.fill_(0.25)
    for network in (G, D):
        for value in network.state_dict().values():
            assert not value.is_floating_point() or (value == 0.25).all()
    G.first.weight.data.fill_(3.0)
    assert (flat.theta == 3.0).sum() == G.first.weight.numel()
    sections = [flat.statistics_of_generator, flat.moments_of_generator, flat.theta, flat.phi]
    sections += [flat.moments_of_discriminator, flat.statistics_of_discriminator]
    assert sum(s.numel() for s in sections) == flat.vector.numel() == flat.gan.numel()


def test_sent_sections_include_statistics_if_configured():
    sizes = {}
    for with_statistics in (True, False):
        G, D = toy_networks()
        flat = FlatParameters(G, D, with_statistics=with_statistics)
        theta, phi = count_parameters(G), count_parameters(D)
        statistics_g, statistics_d = (32, 16) if with_statistics else (0, 0)
        assert flat.gan.numel() == theta + phi + statistics_g + statistics_d
        assert flat.generator.numel() == theta + statistics_g
        assert flat.discriminator.numel() == phi + statistics_d
        assert flat.whole_generator.numel() == theta + 32
        assert flat.gan.is_contiguous() and flat.discriminator.is_contiguous()
        flat.vector.zero_()
        flat.discriminator.fill_(1.0)
        assert (flat.theta == 0).all() and (flat.phi == 1).all()
        sizes[with_statistics] = flat.vector.numel()
    assert sizes[True] == sizes[False]


def test_means_precede_variances():
    G, D = toy_networks()
    flat = FlatParameters(G, D)
    D.norm.running_mean.fill_(5.0)
    D.norm.running_var.fill_(7.0)
    means, variances = flat.statistics_of_discriminator.chunk(2)
    assert (means == 5).all() and (variances == 7).all()
