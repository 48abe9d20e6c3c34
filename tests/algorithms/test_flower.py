"""Aggregation rules and server optimizers against Flower's strategies on the same vectors.

Flower is no dependency of the other tests, because it brings 40 packages; install it with
`pip install "fedgan_mpi[flower]"`.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
pytest.importorskip("flwr")

from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)

from fedgan_mpi.algorithms.aggregation.rules import make_rule
from fedgan_mpi.algorithms.aggregation.server_optimizer import make_server_optimizer
from fedgan_mpi.config import AggregationConfig

STRATEGIES = {
    "median": ({}, lambda n: FedMedian()),
    "trimmed_mean": ({"trim": 1}, lambda n: FedTrimmedAvg(beta=1 / n + 1e-9)),
    "trimmed_mean 2": ({"trim": 2}, lambda n: FedTrimmedAvg(beta=2 / n + 1e-9)),
    "krum": ({"faulty": 1}, lambda n: Krum(num_malicious_clients=1, num_clients_to_keep=0)),
    "krum 2": ({"faulty": 2}, lambda n: Krum(num_malicious_clients=2, num_clients_to_keep=0)),
    "multi_krum": (
        {"faulty": 2, "chosen": 3},
        lambda n: Krum(num_malicious_clients=2, num_clients_to_keep=3),
    ),
}
OPTIMIZERS = {"adam": FedAdam, "yogi": FedYogi, "adagrad": FedAdagrad}


class Proxy(ClientProxy):
    """A client that is never called."""

    def get_properties(self, *arguments): ...

    def get_parameters(self, *arguments): ...

    def fit(self, *arguments): ...

    def evaluate(self, *arguments): ...

    def reconnect(self, *arguments): ...


def aggregate(strategy, vectors, images, t=1):
    """Return what a strategy makes of the vectors."""
    results = [
        (
            Proxy(str(n)),
            FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), images[n], {}),
        )
        for n, vector in enumerate(vectors)
    ]
    parameters, _ = strategy.aggregate_fit(t, results, [])
    return parameters_to_ndarrays(parameters)[0]


def random_vectors(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 50))


@pytest.mark.parametrize("count", [7, 8, 11])
@pytest.mark.parametrize("case", STRATEGIES)
def test_a_rule_equals_flowers_strategy(case, count):
    options, make_strategy = STRATEGIES[case]
    for seed in range(5):
        vectors = random_vectors(count, seed)
        expected = aggregate(make_strategy(count), vectors, [1] * count)
        rule = make_rule(AggregationConfig(rule=case.split()[0], options=options))
        shares = torch.full((count,), 1 / count, dtype=torch.float64)
        combined = rule.combine(torch.from_numpy(vectors.copy()), shares)
        np.testing.assert_allclose(combined.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_the_weighted_mean_equals_fed_avg():
    """And the rules differ from it on these vectors."""
    vectors, images = random_vectors(7, 0), [3, 1, 4, 1, 5, 9, 2]
    expected = aggregate(FedAvg(), vectors, images)
    mean = sum(n * vector for n, vector in zip(images, vectors, strict=True)) / sum(images)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    for _, make_strategy in STRATEGIES.values():
        assert abs(aggregate(make_strategy(7), vectors, [1] * 7) - expected).max() > 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_server_optimizer_equals_flowers_strategy(name):
    """Flower starts v at 0 instead of τ², and its FedAdam corrects the rate for the bias of the
    moments, which arXiv:2003.00295 does not."""
    rate, betas, tau, rounds, size = 0.1, (0.9, 0.99), 0.01, 6, 50
    start = random_vectors(1, 99)[0]
    settings = {"initial_parameters": ndarrays_to_parameters([start]), "eta": rate, "tau": tau}
    if name == "adagrad":
        betas = (0.0, 0.99)  # Flower's FedAdagrad has no momentum
    else:
        settings |= {"beta_1": betas[0], "beta_2": betas[1]}
    strategy = OPTIMIZERS[name](**settings)
    strategy.initialize_parameters(None)
    optimizer = make_server_optimizer(
        AggregationConfig(
            server_optimizer=name, server_options={"rate": rate, "betas": betas, "tau": tau}
        )
    )
    x = torch.from_numpy(start.copy())
    state = optimizer.allocate(size, like=x)
    state["second"].zero_()
    for t in range(1, rounds + 1):
        vectors = random_vectors(5, t)
        expected = aggregate(strategy, vectors, [1] * 5, t)
        if name == "adam":
            correction = math.sqrt(1 - betas[1] ** (t + 1)) / (1 - betas[0] ** (t + 1))
            optimizer.rate = rate * correction
        x = x + optimizer.change(torch.from_numpy(vectors.mean(0)) - x, state)
        np.testing.assert_allclose(x.numpy(), expected, rtol=1e-10, atol=1e-12)
