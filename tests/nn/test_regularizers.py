"""Regularizers of D against finite differences and plain loops."""

from __future__ import annotations

import pytest
import torch
from finite_differences import assert_weight_gradients, input_gradients
from toys import toy_networks

from fedgan_mpi.config import Config, TrainingConfig
from fedgan_mpi.config.training import Regularizer
from fedgan_mpi.errors import UserError
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.nn.regularizers import LeCam, ZeroCenteredPenalty
from fedgan_mpi.nn.steps import Batch


def images(count=5):
    stream = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 4, 4, generator=stream, dtype=torch.float64) * 2 - 1


def test_the_zero_centered_penalty_and_its_gradient_equal_finite_differences():
    _, D = toy_networks(batchnorm=False)
    real = images()

    def numeric_penalty():
        return 3.0 * input_gradients(D, real).square().sum(1).mean()

    value = ZeroCenteredPenalty(3.0).loss(D, Batch(real), Batch(images() * 0))
    torch.testing.assert_close(value.detach(), numeric_penalty(), rtol=1e-7, atol=0)
    value.backward()
    assert_weight_gradients(D.first.weight, numeric_penalty)


def test_lecam_equals_a_plain_loop():
    lecam = LeCam(0.5, torch.zeros(1, dtype=torch.float64))
    loss = lecam.apply(LOSSES["hinge"])
    stream = torch.Generator().manual_seed(2)
    anchor_real = anchor_fake = 0.0
    for _ in range(50):
        real = torch.randn(6, generator=stream, dtype=torch.float64) + 1
        fake = torch.randn(6, generator=stream, dtype=torch.float64) - 1
        values = loss.real(real)
        anchor_real += 0.01 * (sum(real.tolist()) / 6 - anchor_real)
        for x, value in zip(real.tolist(), values.tolist(), strict=True):
            assert value == pytest.approx(max(0, 1 - x) + 0.5 * max(0, x - anchor_fake) ** 2)
        values = loss.fake(fake)
        anchor_fake += 0.01 * (sum(fake.tolist()) / 6 - anchor_fake)
        for x, value in zip(fake.tolist(), values.tolist(), strict=True):
            assert value == pytest.approx(max(0, 1 + x) + 0.5 * max(0, anchor_real - x) ** 2)
    assert lecam.anchors.tolist() == pytest.approx([anchor_real, anchor_fake])
    assert loss.generator is LOSSES["hinge"].generator


def test_anchors_have_no_part_in_the_gradient():
    lecam = LeCam(1.0, torch.zeros(1, dtype=torch.float64))
    logits = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    lecam.apply(LOSSES["wgan-gp"]).real(logits).sum().backward()
    assert logits.grad.tolist() == [2 * 2.0 - 1, -1.0]


def test_default_weights_and_the_penalty_of_a_loss():
    training = TrainingConfig(regularizer="r1", regularizer_interval=16)
    assert training.resolve_regularizer() == Regularizer("r1", 1.0, 16)
    assert TrainingConfig().resolve_regularizer() == Regularizer("none", 0.0)
    assert TrainingConfig(gradient_penalty=3.0).resolve_regularizer(True) == Regularizer(
        "gradient_penalty", 3.0
    )


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"regularizer_weight": 1.0}, "training.regularizer_weight is 1.0, but must be at least 0"),
        (
            {"regularizer": "r1", "regularizer_weight": -1.0},
            "training.regularizer_weight is -1.0, but must be at least 0",
        ),
        (
            {"regularizer": "lecam", "regularizer_interval": 4},
            "training.regularizer_interval is 4, but must be at least 1, and 1 when",
        ),
        (
            {"regularizer": "r1", "regularizer_interval": 0},
            "training.regularizer_interval is 0, but must be at least 1",
        ),
    ],
)
def test_impossible_values_are_refused(training, sentence):
    with pytest.raises(UserError) as error:
        TrainingConfig(**training)
    assert sentence in str(error.value)


def test_wgan_gp_has_its_own_penalty():
    with pytest.raises(UserError, match=r"training.regularizer is 'r1', but must be left out"):
        Config(training=TrainingConfig(loss="wgan-gp", regularizer="r1"))
