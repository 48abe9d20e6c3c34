"""Scores on several ranks against numpy on all images in one process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import oracle_scores
import pytest
import torch
from mpi4py import MPI

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.config.model import ModelConfig
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.features import Classifier
from fedgan_mpi.evaluation.generation import CHUNK, Generated
from fedgan_mpi.evaluation.image_classes import find_classes
from fedgan_mpi.evaluation.metrics import make_metrics, need_classes
from fedgan_mpi.evaluation.pairwise import K_NEAREST
from fedgan_mpi.evaluation.real_images import RealImages
from fedgan_mpi.evaluation.scorer import Scorer
from fedgan_mpi.evaluation.stats_cache import StatsCache

pytestmark = pytest.mark.mpi(min_size=3)

SIZES = [300, 7, 90, 411]
SAMPLES = 2 * CHUNK + 17


def images(count: int, seed: int) -> np.ndarray:
    """Smooth images, because all noise images have similar features."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4))
    return coarse.repeat(3, 2).repeat(3, 3).astype(np.uint8)


def labels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, count)


def fakes(*, count: int, chunk: int) -> Generated:
    return Generated(255 - images(count, 1000 + chunk) // 2, labels(count, 1000 + chunk))


def make_scorer(
    link: Link,
    directory: Path,
    *,
    ranks: int,
    rank: int,
    heldout_everywhere: bool,
    metrics: tuple[str, ...] = ("frechet", "classes", "kid", "prdc"),
    has_labels: bool = False,
) -> Scorer:
    """A scorer on rank `rank` of `ranks`, which holds every `ranks`-th device.

    has_labels: classes are those of the labels, not the classifier's.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = Classifier((1, 12, 12), 3).eval()
    extractor.sha256 = "0" * 64
    shards = {
        device: Shard(
            path=directory, images=images(size, device), labels=labels(size, device), sha256=""
        )
        for device, size in enumerate(SIZES, start=1)
        if (device - 1) % ranks == rank
    }
    heldout = Shard(
        path=directory, images=images(SAMPLES, 99), labels=labels(SAMPLES, 99), sha256=""
    )
    real = RealImages(
        shards=shards,
        images=SIZES,
        heldout=heldout if heldout_everywhere or link.is_server else None,
        heldout_everywhere=heldout_everywhere,
        directory=directory,
        sha256="1" * 64,
    )
    made = make_metrics(metrics, {})
    classes = find_classes(
        link,
        Config(model=ModelConfig(conditional=has_labels)),
        [extractor],
        is_needed=need_classes(made),
        classes=3,
        shards=None,
    )
    return Scorer(link, [extractor], real, metrics=made, samples=SAMPLES, seed=3, classes=classes)


def score(scorer: Scorer) -> dict[str, float]:
    link = scorer.link
    return scorer.finish(scorer.accumulate(fakes, rank=link.rank, size=link.size))


@torch.no_grad()
def features(extractor: Classifier, pixels: np.ndarray) -> np.ndarray:
    return extractor.features(torch.from_numpy(pixels)).double().numpy()


@torch.no_grad()
def class_frequencies(extractor: Classifier, points: np.ndarray) -> np.ndarray:
    predicted = extractor.logits(torch.from_numpy(points).float()).argmax(1).numpy()
    return np.bincount(predicted, minlength=3) / len(points)


def all_fakes() -> np.ndarray:
    chunks = [fakes(count=CHUNK, chunk=n).images for n in range(2)]
    return np.concatenate([*chunks, fakes(count=17, chunk=2).images])


def all_labels() -> tuple[np.ndarray, np.ndarray]:
    """Labels of all real images, and of all fakes."""
    real = [labels(size, device) for device, size in enumerate(SIZES, start=1)]
    return np.concatenate(real), np.concatenate(
        [labels(count, 1000 + n) for n, count in enumerate((CHUNK, CHUNK, 17))]
    )


@pytest.mark.parametrize("heldout_everywhere", [False, True])
def test_scores_of_all_ranks_equal_plain_numpy(comm, tmp_path, heldout_everywhere):
    link = Link(comm)
    directory = tmp_path
    if heldout_everywhere:
        directory = tmp_path / f"rank {link.rank}"
        directory.mkdir()
    scorer = make_scorer(
        link,
        directory,
        ranks=link.size,
        rank=link.rank,
        heldout_everywhere=heldout_everywhere,
    )
    values = score(scorer)

    network = scorer.extractors[0]
    pooled = np.concatenate([images(size, device) for device, size in enumerate(SIZES, start=1)])
    real, fake = features(network, pooled), features(network, all_fakes())
    expected = oracle_scores.frechet(fake, real)
    assert values["frechet_classifier_distance-00000000"] == pytest.approx(expected, rel=1e-6)
    expected = oracle_scores.frechet(features(network, images(SAMPLES, 99)), real)
    floors = dict(zip(values, scorer.floors.values(), strict=True))
    assert floors["frechet_classifier_distance-00000000"] == pytest.approx(expected, rel=1e-6)

    of_fakes, of_real = class_frequencies(network, fake), class_frequencies(network, real)
    assert values["classes_covered"] == (of_fakes > 0.01).sum()
    variation = np.abs(of_fakes - of_real).sum() / 2
    assert values["class_total_variation"] == pytest.approx(variation, rel=1e-12)

    # The stored rows are features of real images, drawn from each device by its size.
    drawn = scorer.real.per_extractor[0].rows
    assert drawn.shape == (SAMPLES, 64)
    distances = np.linalg.norm(drawn[:, None] - real[None], axis=2)
    assert distances.min(1).max() < 1e-4
    starts = np.cumsum([0, *SIZES])
    devices = np.searchsorted(starts, distances.argmin(1), side="right")
    shares = np.bincount(devices, minlength=5)[1:] / SAMPLES
    assert np.abs(shares - np.array(SIZES) / sum(SIZES)).max() < 1.5 / SAMPLES
    for name, value in oracle_scores.prdc(drawn, fake, k=K_NEAREST).items():
        assert values[f"{name}_classifier-00000000"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("has_labels", [False, True])
def test_the_distance_of_each_class_equals_plain_numpy(comm, tmp_path, has_labels):
    scorer = make_scorer(
        Link(comm), tmp_path, ranks=comm.size, rank=comm.rank, heldout_everywhere=False,
        metrics=("frechet", "per_class"), has_labels=has_labels,
    )  # fmt: skip
    values, network = score(scorer), scorer.extractors[0]
    pooled = np.concatenate([images(size, device) for device, size in enumerate(SIZES, start=1)])
    real, fake = features(network, pooled), features(network, all_fakes())
    of_real, of_fakes = all_labels()
    if not has_labels:
        of_real, of_fakes = (
            network.logits(torch.from_numpy(each).float()).argmax(1).numpy()
            for each in (real, fake)
        )
    expected = {
        f"frechet_class_{n}_classifier-00000000": oracle_scores.frechet(
            fake[of_fakes == n], real[of_real == n]
        )
        for n in range(3)
        if min((of_real == n).sum(), (of_fakes == n).sum()) > 1
    }
    # The classifier finds one class in the fakes, and the others have no value.
    assert len(expected) == (3 if has_labels else 1) and len(values) == 1 + len(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-6), name
    lines = scorer.lines(7, values)
    assert {line["metric"] for line in lines} == set(values) & set(scorer.floors)
    floors = {line["metric"]: line["floor"] for line in lines}
    assert floors == {name: scorer.floors[name] for name in floors}


def test_federated_kid_is_the_mean_of_the_devices_and_sends_no_features(
    comm, tmp_path, monkeypatch
):
    link, sent = Link(comm), []
    plain_sum = Link.sum
    monkeypatch.setattr(
        Link, "sum", lambda self, numbers: sent.append(numbers.copy()) or plain_sum(self, numbers)
    )
    scorer = make_scorer(
        link, tmp_path, ranks=comm.size, rank=comm.rank, heldout_everywhere=False,
        metrics=("frechet", "kid_federated"),
    )  # fmt: skip
    value = score(scorer)["kid_federated_classifier-00000000"]
    network = scorer.extractors[0]
    fake = features(network, all_fakes())
    devices = [features(network, images(size, n)) for n, size in enumerate(SIZES, start=1)]
    distances = [oracle_scores.squared_mmd(real, fake) for real in devices]
    expected = np.average(distances, weights=SIZES)
    assert value == pytest.approx(expected, rel=1e-9)
    assert value != pytest.approx(np.mean(distances), rel=1e-3)
    of_all_ranks = [message for messages in comm.allgather(sent) for message in messages]
    numbers = np.sort(np.concatenate(of_all_ranks))
    for rows, is_sent in ((np.concatenate(devices), False), (fake, True)):
        nearest = numbers[np.searchsorted(numbers, rows[:, 0]).clip(0, len(numbers) - 1)]
        assert np.isclose(nearest, rows[:, 0], rtol=1e-9, atol=0).any() == is_sent


def test_a_score_does_not_depend_on_the_number_of_ranks(comm, tmp_path):
    from mpi4py import MPI

    link, single_link = Link(comm), Link(MPI.COMM_SELF)
    directory = tmp_path / f"single {link.rank}"
    directory.mkdir()
    together = make_scorer(
        link, tmp_path, ranks=link.size, rank=link.rank, heldout_everywhere=False
    )
    single = make_scorer(single_link, directory, ranks=1, rank=0, heldout_everywhere=False)
    values, expected = score(together), score(single)
    own = [
        make_scorer(
            each, folder, ranks=each.size, rank=each.rank, heldout_everywhere=False,
            metrics=("frechet", "kid_federated", "per_class"),
        )
        for each, folder in ((link, tmp_path), (single_link, directory))
    ]  # fmt: skip
    values, expected = values | score(own[0]), expected | score(own[1])
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
    assert values["kid_std_classifier-00000000"] > 0


def test_feature_sums_of_real_images_are_cached_and_a_damaged_cache_is_ignored(comm, tmp_path):
    link = Link(comm)
    directory = comm.bcast(tmp_path)
    manifest = directory / "shards.json"
    if link.is_server:
        manifest.write_text("{}")

    def score_anew() -> dict[str, float]:
        comm.barrier()
        return score(
            make_scorer(link, directory, ranks=link.size, rank=link.rank, heldout_everywhere=False)
        )

    first = score_anew()
    (file,) = (directory / ".statistics").glob("*.npz")
    content = file.read_bytes()
    assert score_anew() == first
    if link.is_server:
        file.write_bytes(content[:1000])
    assert score_anew() == first
    comm.barrier()
    assert file.read_bytes() == content  # it was computed and written again

    extractor = make_scorer(link, directory, ranks=1, rank=0, heldout_everywhere=False).extractors
    cache = StatsCache(directory, "1" * 64, extractor)
    sums = cache.read()
    changed = sums[0].copy()
    changed[:3] = [1, 1, 1]  # images of each class
    comm.barrier()
    if link.is_server:  # other sums in the cache give another score: it is used
        cache.write([changed])
    other = score_anew()["class_total_variation"]
    assert other > first["class_total_variation"] + 0.5
    comm.barrier()
    if link.is_server:  # the same sums, written for another manifest
        manifest.write_text('{"seed": 1}')
    assert score_anew() == first
    comm.barrier()
    if link.is_server:  # planted without a hash, or with the hash of other sums
        arrays = dict(np.load(file))
        np.savez(file, **{**arrays, "arr_0": changed})
    assert score_anew() == first


def test_a_cache_that_others_could_write_is_not_used(comm, tmp_path):
    if comm.rank > 0:
        return
    (tmp_path / "shards.json").write_text("{}")
    (tmp_path / "shards.json").chmod(0o644)
    scorer = make_scorer(Link(MPI.COMM_SELF), tmp_path, ranks=1, rank=0, heldout_everywhere=False)
    cache = StatsCache(tmp_path, "1" * 64, scorer.extractors)
    sums = [np.arange(float(cache.lengths[0]))]
    cache.write(sums)
    assert np.array_equal(cache.read()[0], sums[0])
    other = StatsCache(tmp_path, "2" * 64, scorer.extractors)  # other shards or extractors
    other.path.write_bytes(cache.path.read_bytes())
    assert other.read() is None
    cache.path.chmod(0o664)
    assert cache.read() is None
    (tmp_path / "shards.json").chmod(0o664)
    assert cache.read() is not None
    (tmp_path / "shards.json").unlink()
    assert cache.read() is None
    cache.write(sums)  # nothing to bind it to
    if os.getuid() == 0:
        (tmp_path / "shards.json").write_text("{}")
        cache.write(sums)
        os.chown(cache.path, 65534, 65534)
        assert cache.read() is None
