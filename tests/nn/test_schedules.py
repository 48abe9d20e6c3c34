"""Learning-rate schedules against torch's."""

from __future__ import annotations

import warnings

import pytest
import torch

from fedgan_mpi.config import TrainingConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.nn.optimizers import make_optimizer
from fedgan_mpi.nn.schedules import rate_factor

ROUNDS = 20


def torch_factors(make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make(optimizer)
    factors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(ROUNDS):
            factors.append(optimizer.param_groups[0]["lr"])
            schedule.step()
    return factors


schedulers = torch.optim.lr_scheduler
CASES = {
    "constant": lambda o: schedulers.ConstantLR(o, 1.0),
    "linear": lambda o: schedulers.LinearLR(o, 1.0, 0.0, ROUNDS),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, ROUNDS),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("warmup", [0, 4])
def test_factors_equal_torchs(name, warmup):
    training = TrainingConfig(rounds=ROUNDS, lr_schedule=name, warmup_rounds=warmup)
    if warmup:
        rest = {
            "constant": CASES["constant"],
            "linear": lambda o: schedulers.LinearLR(o, 1.0, 0.0, ROUNDS - warmup),
            "cosine": lambda o: schedulers.CosineAnnealingLR(o, ROUNDS - warmup),
        }[name]
        rise = lambda o: schedulers.LinearLR(o, 1 / warmup, 1.0, warmup - 1)  # noqa: E731
        expected = torch_factors(rise)[:warmup] + torch_factors(rest)[: ROUNDS - warmup]
    else:
        expected = torch_factors(CASES[name])
    factors = [rate_factor(training, t) for t in range(ROUNDS)]
    assert factors == pytest.approx(expected, abs=1e-12)
    assert min(factors) > 0  # every round moves


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_steps_with_a_factor_equal_torchs_with_another_rate(kind):
    stream = torch.Generator().manual_seed(0)
    start = torch.randn(30, generator=stream, dtype=torch.float64)
    flat = torch.nn.Parameter(start.clone())
    flat.grad = torch.zeros(30, dtype=torch.float64)
    ours = make_optimizer(flat, kind=kind, lr=0.1, betas=(0.5, 0.9))
    theirs = torch.nn.Parameter(start.clone())
    options = {"lr": 0.1, "betas": (0.5, 0.9)} if kind == "adam" else {"lr": 0.1}
    optimizer = (torch.optim.Adam if kind == "adam" else torch.optim.SGD)([theirs], **options)
    for factor in (1.0, 0.25, 0.7, 0.01):
        gradient = torch.randn(30, generator=stream, dtype=torch.float64)
        flat.grad.copy_(gradient)
        theirs.grad = gradient.clone()
        ours.set_factor(factor)
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        ours.step()
        optimizer.step()
    torch.testing.assert_close(flat.data, theirs.data, rtol=1e-10, atol=1e-12)


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(UserError, match=r"training.warmup_rounds is 9, but must be from 0 to"):
        TrainingConfig(rounds=8, warmup_rounds=9)
