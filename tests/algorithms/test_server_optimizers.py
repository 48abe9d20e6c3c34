"""Server optimizers against plain loops over single parameters (Reddi et al. 2021, algorithm 2)."""

from __future__ import annotations

import math

import pytest
import torch

from fedgan_mpi.algorithms.aggregation.server_optimizer import make_server_optimizer
from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.errors import UserError


def make(name, **options):
    return make_server_optimizer(AggregationConfig(server_optimizer=name, server_options=options))


def sgd(updates, rate, momentum):
    m, changes = 0.0, []
    for update in updates:
        m = momentum * m + update
        changes.append(rate * m)
    return changes


def adaptive(accumulate):
    def loop(updates, rate, beta1, beta2, tau):
        m, v, changes = 0.0, tau**2, []
        for update in updates:
            m = beta1 * m + (1 - beta1) * update
            v = accumulate(v, update**2, beta2)
            changes.append(rate * m / (math.sqrt(v) + tau))
        return changes

    return loop


def yogi(v, square, beta2):
    sign = (v > square) - (v < square)
    return v - (1 - beta2) * square * sign


ADAPTIVE = {
    "adam": adaptive(lambda v, square, beta2: beta2 * v + (1 - beta2) * square),
    "yogi": adaptive(yogi),
    "adagrad": adaptive(lambda v, square, beta2: v + square),
}


def changes_of(optimizer, updates):
    state = optimizer.allocate(updates.shape[1], like=updates)
    before = updates.clone()
    changes = torch.stack([optimizer.change(update, state) for update in updates])
    assert torch.equal(updates, before)  # the update is read-only
    return changes


def random_updates():
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_adaptive_optimizer_equals_a_loop(name):
    updates = random_updates()
    changes = changes_of(make(name, rate=0.3, betas=[0.8, 0.95], tau=0.01), updates)
    for column, expected in zip(changes.T.tolist(), updates.T.tolist(), strict=True):
        assert column == pytest.approx(ADAPTIVE[name](expected, 0.3, 0.8, 0.95, 0.01))


@pytest.mark.parametrize(("rate", "momentum"), [(0.5, 0.0), (1.0, 0.9), (2.0, 0.3)])
def test_sgd_equals_a_loop(rate, momentum):
    updates = random_updates()
    changes = changes_of(make("sgd", rate=rate, momentum=momentum), updates)
    for column, expected in zip(changes.T.tolist(), updates.T.tolist(), strict=True):
        assert column == pytest.approx(sgd(expected, rate, momentum))


def test_the_default_is_the_plain_average():
    assert make("sgd") is None and make("sgd", rate=1.0, momentum=0.0) is None


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("sgd", {"rate": 0.0}, "aggregation.server_options.rate is 0.0, but must be above 0"),
        ("sgd", {"momentum": 1.0}, "aggregation.server_options.momentum is 1.0, but must be from"),
        ("adam", {"tau": 0.0}, "aggregation.server_options.tau is 0.0, but must be above 0"),
        ("yogi", {"betas": [0.5, 1.0]}, "aggregation.server_options.betas is [0.5, 1.0], but"),
        ("sgd", {"betas": [0.5, 0.9]}, "unknown key aggregation.server_options.betas"),
    ],
)
def test_impossible_options_are_refused(name, options, sentence):
    with pytest.raises(UserError) as error:
        make(name, **options)
    assert sentence in str(error.value)
