"""The serial and the parallel schedule of the paper: staleness, dynamics, common results."""

from __future__ import annotations

import math

import pytest
import torch
from rounds import assert_close, link_of, trained
from torch import nn
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform, Upload
from fedgan_mpi.comm.link import Link
from fedgan_mpi.nn.losses import Loss

pytestmark = pytest.mark.mpi(min_size=3)

SCHEDULES = ["serial", "parallel"]


class Corruption(UpdateTransform):
    """Adds 1 to every uploaded parameter."""

    def on_device(self, upload: Upload) -> None:
        upload.vector.add_(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_staleness_of_the_generator(comm, schedule):
    """θ_{t+1} depends on the uploads of round t in the serial schedule only."""
    link = Link(comm)
    config = toy_config(algorithm={"schedule": schedule})
    shards = toy_shards([8] * link.device_ranks)
    clean = toy_algorithm(link, config, shards)
    corrupt = toy_algorithm(link, config, shards)
    play(clean, 3)
    play(corrupt, 2)
    corrupt.uplink.transforms.append(Corruption())
    play(corrupt, 1, start=2)
    corrupt.uplink.transforms.clear()
    if link.is_server:
        (theta, phi), (theta_corrupt, phi_corrupt) = vectors(clean), vectors(corrupt)
        assert not torch.equal(phi, phi_corrupt)
        assert torch.equal(theta, theta_corrupt) == (schedule == "parallel")
    play(clean, 1, start=3)
    play(corrupt, 1, start=3)
    if link.is_server:
        assert not torch.equal(vectors(clean)[0], vectors(corrupt)[0])


class Scalar(nn.Module):
    """A network with one parameter: G returns it as an image, D multiplies an image by it."""

    def __init__(self, value: float, is_generator: bool) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.is_generator = is_generator

    def forward(self, x):
        if self.is_generator:
            return self.value.expand(len(x), 1, 4, 4)
        return self.value * x[:, 0, 0, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bilinear_game(comm, schedule):
    """f = φθ with ascent in φ and descent in θ, step η.

    The parallel schedule multiplies the norm by √(1+η²) per round. The serial one conserves
    θ² + φ² + ηθφ.
    """
    link = link_of(comm, 2)
    if link is None:
        return
    eta = 0.2
    game = Loss(
        real=lambda logits: 0 * logits,
        fake=lambda logits: -logits,
        generator=lambda logits: logits,
    )
    config = toy_config(
        algorithm={"schedule": schedule},
        training={
            "optimizer": "sgd",
            "generator_lr": eta,
            "discriminator_lr": eta,
            "discriminator_steps": 1,
        },
    )
    networks = (Scalar(1.0, is_generator=True), Scalar(0.5, is_generator=False))
    algorithm = toy_algorithm(link, config, toy_shards([8]), networks=networks, loss=game)

    def norm_and_ellipse():
        theta, phi = (vector.item() for vector in vectors(algorithm))
        return math.hypot(theta, phi), theta**2 + phi**2 + eta * phi * theta

    before, ellipse_before = norm_and_ellipse()
    for t in range(50):
        play(algorithm, 1, start=t)
        after, ellipse = norm_and_ellipse()
        if link.is_server and schedule == "parallel":
            assert after / before == pytest.approx(math.sqrt(1 + eta**2), rel=1e-13)
        if link.is_server and schedule == "serial":
            assert ellipse == pytest.approx(ellipse_before, rel=1e-12)
        before = after


def test_schedules_differ_only_in_the_generator(comm):
    """They have the same φ's if n_g = 0, the same θ's if n_d = 0, and always the same φ_1."""
    link = Link(comm)
    shards = toy_shards([8] * link.device_ranks)

    def both(rounds, **training):
        configs = [
            toy_config(algorithm={"schedule": schedule}, training=training)
            for schedule in SCHEDULES
        ]
        return [trained(link, config, shards, rounds) for config in configs]

    no_g, no_d = both(3, generator_steps=0), both(3, discriminator_steps=0)
    one_round, two_rounds = both(1), both(2)
    if link.is_server:
        assert torch.equal(no_g[0][1], no_g[1][1])
        assert_close(no_d[0][0], no_d[1][0])  # the mean of equal φ's is rounded
        assert torch.equal(one_round[0][1], one_round[1][1])
        assert not torch.equal(one_round[0][0], one_round[1][0])
        assert not torch.equal(two_rounds[0][1], two_rounds[1][1])
