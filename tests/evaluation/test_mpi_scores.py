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
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.features import Classifier
from fedgan_mpi.evaluation.generation import CHUNK
from fedgan_mpi.evaluation.metrics import make_metrics
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


def fakes(*, count: int, chunk: int) -> np.ndarray:
    return 255 - images(count, 1000 + chunk) // 2


def make_scorer(
    link: Link, directory: Path, *, ranks: int, rank: int, heldout_everywhere: bool
) -> Scorer:
    """A scorer on rank `rank` of `ranks`, which holds every `ranks`-th device."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = Classifier((1, 12, 12), 3).eval()
    extractor.sha256 = "0" * 64
    shards = {
        device: Shard(path=directory, images=images(size, device), labels=None, sha256="")
        for device, size in enumerate(SIZES, start=1)
        if (device - 1) % ranks == rank
    }
    heldout = Shard(path=directory, images=images(SAMPLES, 99), labels=None, sha256="")
    real = RealImages(
        shards=shards,
        images=SIZES,
        heldout=heldout if heldout_everywhere or link.is_server else None,
        heldout_everywhere=heldout_everywhere,
        directory=directory,
        sha256="1" * 64,
    )
    metrics = make_metrics(("frechet", "classes", "kid", "prdc"), {})
    return Scorer(link, [extractor], real, metrics=metrics, samples=SAMPLES, seed=3)


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
    chunks = [fakes(count=CHUNK, chunk=n) for n in range(2)]
    return np.concatenate([*chunks, fakes(count=17, chunk=2)])


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
