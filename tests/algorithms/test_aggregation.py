"""Transforms of updates: importance weighting, clipping, noise, BatchNorm recalibration."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from rounds import UNEQUAL, assert_close
from torch import Tensor, nn
from toys import toy_networks

from fedgan_mpi.algorithms.aggregation.importance import ImportanceWeighting
from fedgan_mpi.algorithms.aggregation.privacy import Clip, GaussianNoise
from fedgan_mpi.algorithms.aggregation.recalibration import BatchNormRecalibration
from fedgan_mpi.algorithms.aggregation.transforms import Upload
from fedgan_mpi.algorithms.local_metrics import LocalMetrics
from fedgan_mpi.config import ParticipationConfig
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.federation.participation import Participation


def random_vector(size: int, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=stream, dtype=torch.float64)


def make_upload(vector: Tensor, received: Tensor | None = None, *, device: int = 1) -> Upload:
    return Upload(
        device=SimpleNamespace(index=device),
        round=0,
        share=0.5,
        vector=vector,
        received=torch.zeros_like(vector) if received is None else received,
        metrics=LocalMetrics(),
    )


# ---------------------------------------------------------------- importance weighting


def test_importance_weighting_scales_updates_and_records_their_norm():
    """In round 0 all norms are equal: π_k = 2 (0.9 p_k + 0.1/5) with p_k ∝ images · rate."""
    config = ParticipationConfig(policy="importance", count=2)
    participation = Participation(
        config, images=UNEQUAL, batch_sizes=UNEQUAL, shares="data", seed=0
    )
    rates = participation.cell.faded_uplink_rates(0, 0, 2)
    weights = [n * rate for n, rate in zip(UNEQUAL, rates, strict=True)]
    probabilities = [2 * (0.9 * weight / sum(weights) + 0.1 / 5) for weight in weights]
    assert max(probabilities) < 1
    present = participation.participants(0)
    fraction = sum(UNEQUAL[k - 1] for k in present) / sum(UNEQUAL)

    flat = FlatParameters(*toy_networks())
    sections = (flat.theta.detach(), flat.phi.detach())
    transform = ImportanceWeighting(participation, *sections)
    assert transform.needs_received
    for k in present:
        received = random_vector(len(flat.gan))
        update = random_vector(len(flat.gan), seed=k)
        flat.gan.copy_(received + update)
        before = flat.gan.clone()
        upload = make_upload(flat.gan, received, device=k)
        transform.on_device(upload)

        statistics = len(flat.statistics_of_generator)
        parameters = slice(statistics, statistics + len(sections[0]) + len(sections[1]))
        factor = fraction / probabilities[k - 1]
        assert factor != pytest.approx(1.0)
        expected = before.clone()
        expected[parameters] = received[parameters] + factor * update[parameters]
        assert_close(flat.gan, expected)
        outside = torch.ones_like(before, dtype=torch.bool)
        outside[parameters] = False
        assert torch.equal(flat.gan[outside], before[outside])
        norm = math.sqrt(sum(float(number) ** 2 for number in update[parameters]))
        assert upload.metrics.update_norms == {k: pytest.approx(norm)}
        assert upload.share == 0.5


# ---------------------------------------------------------------- privacy


@pytest.mark.parametrize("rounding_error", [0.0, 2.0**-9])
def test_clip_scales_long_updates_and_keeps_short_ones(rounding_error):
    vector = random_vector(50)
    parameters, limit = vector[:40], 3.0 / (1 + rounding_error)
    clip = Clip(parameters, 3.0, rounding_error)
    for norm in (0.5, 1.5, 6.0, 60.0):
        vector.copy_(random_vector(50))
        parameters.mul_(norm * limit / parameters.norm())
        before = vector.clone()
        clip.on_device(make_upload(vector))
        if norm < 1:
            assert torch.equal(vector, before)
        else:
            assert parameters.norm().item() == pytest.approx(limit, rel=1e-12)
            assert_close(parameters, before[:40] * (limit / before[:40].norm()))
        assert torch.equal(vector[40:], before[40:])


def test_a_norm_of_zero_clips_nothing():
    vector = 1e6 * random_vector(50)
    before = vector.clone()
    Clip(vector, 0.0, 0.0).on_device(make_upload(vector))
    assert torch.equal(vector, before)


def noise_of(seed: int, t: int, deviation: float = 0.2) -> Tensor:
    vector = torch.zeros(20_100, dtype=torch.float64)
    GaussianNoise(vector[:20_000], deviation, seed).on_server(t)
    assert not vector[20_000:].any()
    return vector[:20_000]


def test_gaussian_noise_has_the_given_deviation():
    noise = noise_of(seed=0, t=0)
    assert noise.std().item() == pytest.approx(0.2, rel=4 / math.sqrt(2 * len(noise)))
    assert abs(noise.mean().item()) < 4 * 0.2 / math.sqrt(len(noise))
    within_one = (noise.abs() < 0.2).double().mean().item()
    assert within_one == pytest.approx(0.6827, abs=0.02)


def test_gaussian_noise_depends_on_seed_and_round_alone():
    noise = noise_of(seed=3, t=7)
    assert torch.equal(noise, noise_of(seed=3, t=7))
    for other in (noise_of(seed=3, t=8), noise_of(seed=4, t=7)):
        correlation = torch.corrcoef(torch.stack([noise, other]))[0, 1]
        assert abs(correlation.item()) < 4 / math.sqrt(len(noise))


# ---------------------------------------------------------------- BatchNorm


@pytest.mark.parametrize("passes", [1, 2, 6])
def test_recalibration_gives_the_variance_of_the_pooled_data(passes):
    """Σ w_k v_k + (Σ w_k μ_k² - (Σ w_k μ_k)²) / a with a = 1 - (1 - momentum)^passes."""
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:, None]
    means = torch.stack([random_vector(8, seed) for seed in range(3)])
    variances = torch.stack([random_vector(8, seed).square() for seed in range(3, 6)])
    statistics = torch.zeros(16, dtype=torch.float64)
    transform = BatchNormRecalibration(nn.BatchNorm1d(8, momentum=0.2), statistics, passes)

    average = torch.zeros(16, dtype=torch.float64)
    for k in range(3):
        statistics.copy_(torch.cat([means[k], variances[k]]))
        transform.on_device(make_upload(statistics))
        average += shares[k] * statistics
    statistics.copy_(average)
    transform.on_server(0)

    mean = (shares * means).sum(0)
    between = (shares * (means - mean).square()).sum(0)
    a = 1 - 0.8**passes
    assert_close(statistics[:8], mean)
    assert_close(statistics[8:], (shares * variances).sum(0) + between / a)


@pytest.mark.parametrize(
    ("network", "passes"), [(nn.Linear(8, 8), 2), (nn.BatchNorm1d(8), 0)], ids=str
)
def test_recalibration_without_batchnorm_or_passes_changes_nothing(network, passes):
    statistics = random_vector(16)
    before = statistics.clone()
    transform = BatchNormRecalibration(network, statistics, passes)
    transform.on_device(make_upload(statistics))
    transform.on_server(0)
    assert torch.equal(statistics, before)


def test_recalibrated_variances_are_never_negative():
    """Rounding may leave less than means²/a in the average."""
    statistics = torch.cat([torch.full((8,), 3.0), torch.full((8,), 1.0)]).double()
    BatchNormRecalibration(nn.BatchNorm1d(8), statistics, 1).on_server(0)
    assert torch.equal(statistics[8:], torch.zeros(8, dtype=torch.float64))
