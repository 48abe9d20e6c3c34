"""Invariants of `ensemble`, whose server has the discriminators of all devices."""

from __future__ import annotations

import pytest
import torch
from rounds import UNEQUAL
from toys import (
    NZ,
    conditional_networks,
    play,
    toy_algorithm,
    toy_config,
    toy_networks,
    toy_shards,
    vectors,
)

from fedgan_mpi.comm.link import Link
from fedgan_mpi.random_streams import Purpose, torch_stream

pytestmark = pytest.mark.mpi(min_size=3)

SGD = {
    "optimizer": "sgd",
    "generator_lr": 1.0,  # so that a step is the gradient
    "batch_size": 6,
    "generator_batch_size": 6,
    "discriminator_steps": 0,
}


def change(device: int, phi: torch.Tensor) -> None:
    """Make a discriminator another one for each device."""
    stream = torch.Generator().manual_seed(device)
    phi.add_(torch.rand(len(phi), generator=stream, dtype=phi.dtype))


def generator_gradient(link, name, mode, *, conditional=False, **options):
    """Return the gradient of G in the first round, if each device has a D of its own."""
    training = SGD if name == "uagan" else {**SGD, "generator_steps": 1}
    config = toy_config(
        algorithm={"name": name, "mode": mode, **options},
        training=training,
        model={"conditional": conditional},
    )
    networks = conditional_networks() if conditional else toy_networks()
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL), networks=networks)
    for device in algorithm.rank_state.devices:
        change(device.index, device.local.own[0])
    before, _ = vectors(algorithm)
    play(algorithm, 1)
    return before - vectors(algorithm)[0]


@pytest.mark.parametrize("conditional", [False, True], ids=["", "conditional"])
@pytest.mark.parametrize("mode", ["odds", "mean", "max", "softmax"])
def test_the_generator_gradient_is_that_of_uagan(comm, mode, conditional):
    """For the same discriminators and the same fakes."""
    link = Link(comm)
    of_uagan, own = (
        generator_gradient(link, name, mode, conditional=conditional)
        for name in ("uagan", "ensemble")
    )
    if link.is_server:
        torch.testing.assert_close(own, of_uagan, rtol=1e-12, atol=1e-12)
        assert own.abs().max() > 1e-3


def test_the_generator_gradient_is_back_propagated_through_all_discriminators(comm):
    """Against one graph from the loss to θ, with D in evaluation mode."""
    link = Link(comm)
    own = generator_gradient(link, "ensemble", "odds")
    G, _ = toy_networks()
    stream = torch_stream(0, Purpose.FAKE, 0)
    fakes = G(torch.randn(6, NZ, generator=stream, dtype=torch.float64))
    odds = 0.0
    for k, images in enumerate(UNEQUAL, start=1):
        _, D = toy_networks()
        parameters = [*D.parameters(), D.norm.running_mean, D.norm.running_var]
        flat = torch.cat([p.detach().flatten() for p in parameters])
        change(k, flat)
        for p in parameters:
            value, flat = flat[: p.numel()], flat[p.numel() :]
            p.data.copy_(value.view_as(p))
        probability = D.eval()(fakes).sigmoid()
        odds = odds + images / sum(UNEQUAL) * probability / (1 - probability)
    (-(odds / (1 + odds)).log()).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in G.parameters()])
    if link.is_server:
        torch.testing.assert_close(own, expected, rtol=1e-11, atol=1e-12)


def test_an_absent_device_keeps_its_discriminator_on_both_sides(comm):
    link = Link(comm)
    config = toy_config(
        algorithm={"name": "ensemble"}, participation={"policy": "round_robin", "count": 2}
    )
    algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
    initial = {k: phi.clone() for k, phi in algorithm.discriminators.items()}
    play(algorithm, 1)
    first = {k: phi.clone() for k, phi in algorithm.discriminators.items()}
    play(algorithm, 1, start=1)
    for k, phi in algorithm.discriminators.items():
        assert torch.equal(first[k], initial[k]) == (k not in (1, 2))
        assert torch.equal(phi, first[k]) == (k not in (3, 4))
    assert len(initial) == (len(UNEQUAL) if link.is_server else len(algorithm.devices))
    sent = comm.allgather({} if link.is_server else algorithm.discriminators)
    if link.is_server:
        for of_rank in sent:
            for k, phi in of_rank.items():
                assert torch.equal(phi, algorithm.discriminators[k])


def test_the_last_uploads_of_all_devices_judge(comm):
    """A device that is absent in round 2 changes G in round 2 by its upload of round 1."""
    link = Link(comm)
    config = toy_config(
        algorithm={"name": "ensemble"}, participation={"policy": "round_robin", "count": 2}
    )
    results = []
    for changed in (False, True):
        algorithm = toy_algorithm(link, config, toy_shards(UNEQUAL))
        play(algorithm, 1)
        if changed and link.is_server:
            change(1, algorithm.discriminators[1])
        play(algorithm, 1, start=1)
        results.append(vectors(algorithm)[0])
    if link.is_server:
        assert (results[0] - results[1]).abs().max() > 1e-9
