"""Scores on many ranks against plain numpy on all images in one place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.features import Classifier
from fedgan_mpi.evaluation.pairs import NEAREST
from fedgan_mpi.evaluation.scorer import CHUNK, RealImages, Scorer

pytestmark = pytest.mark.mpi(min_size=3)

SIZES = [300, 7, 90, 411]
SAMPLES = 2 * CHUNK + 17


def images(count: int, seed: int) -> np.ndarray:
    """Smooth pictures: noise would look all alike to the features."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4))
    return coarse.repeat(3, 2).repeat(3, 3).astype(np.uint8)


def fakes(*, count: int, chunk: int) -> np.ndarray:
    return 255 - images(count, 1000 + chunk) // 2


def make_scorer(link: Link, tmp_path, *, ranks: int, rank: int, on_every_rank: bool) -> Scorer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = Classifier((1, 12, 12), 3).eval()
    extractor.sha256 = "0" * 64
    shards = {
        device: Shard(path=tmp_path, images=images(size, device), labels=None, sha256="")
        for device, size in enumerate(SIZES, start=1)
        if (device - 1) % ranks == rank
    }
    heldout = Shard(path=tmp_path, images=images(SAMPLES, 99), labels=None, sha256="")
    real = RealImages(
        shards=shards,
        images=SIZES,
        heldout=heldout if on_every_rank or link.is_server else None,
        heldout_everywhere=on_every_rank,
        directory=tmp_path / f"of rank {link.rank}" if on_every_rank else tmp_path,
        sha256="1" * 64,
    )
    metrics = ("frechet", "classes", "kid", "prdc")
    return Scorer(link, [extractor], real, metrics=metrics, samples=SAMPLES, seed=3)


@torch.no_grad()
def features(extractor: Classifier, pixels: np.ndarray) -> np.ndarray:
    return extractor.features(torch.from_numpy(pixels)).double().numpy()


def all_fakes() -> np.ndarray:
    parts = [fakes(count=CHUNK, chunk=c) for c in range(2)]
    return np.concatenate([*parts, fakes(count=17, chunk=2)])


def plain_frechet(a: np.ndarray, b: np.ndarray) -> float:
    left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(left @ right).astype(complex)).real.sum()
    difference = a.mean(0) - b.mean(0)
    return float(difference @ difference + np.trace(left) + np.trace(right) - 2 * root)


def plain_neighbours(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Image by image, as the papers define them."""

    def radius(points: np.ndarray, n: int) -> float:
        return sorted(np.linalg.norm(points - points[n], axis=1))[NEAREST]

    real_radii = [radius(real, n) for n in range(len(real))]
    fake_radii = [radius(fake, n) for n in range(len(fake))]
    between = [[np.linalg.norm(x - y) for y in fake] for x in real]
    rows, columns = range(len(real)), range(len(fake))
    inside = [[between[i][j] < real_radii[i] for j in columns] for i in rows]
    return {
        "precision": np.mean([any(inside[i][j] for i in rows) for j in columns]),
        "recall": np.mean([any(between[i][j] < fake_radii[j] for j in columns) for i in rows]),
        "density": np.sum(inside) / NEAREST / len(fake),
        "coverage": np.mean([any(row) for row in inside]),
    }


@pytest.mark.parametrize("on_every_rank", [False, True])
def test_any_number_of_ranks_scores_as_one_process_does(comm, tmp_path, on_every_rank):
    link = Link(comm)
    if on_every_rank:
        (tmp_path / f"of rank {link.rank}").mkdir()
    scorer = make_scorer(
        link, tmp_path, ranks=link.size, rank=link.rank, on_every_rank=on_every_rank
    )
    part = scorer.see(fakes, rank=link.rank, size=link.size)
    values = scorer.measure(part)

    network = scorer.extractors[0]
    pooled = np.concatenate([images(size, device) for device, size in enumerate(SIZES, start=1)])
    real, fake = features(network, pooled), features(network, all_fakes())
    expected = plain_frechet(fake, real)
    assert values["frechet_classifier_distance-00000000"] == pytest.approx(expected, rel=1e-6)
    floor = plain_frechet(features(network, images(SAMPLES, 99)), real)
    floors = dict(zip(values, scorer.floors.values(), strict=True))
    assert floors["frechet_classifier_distance-00000000"] == pytest.approx(floor, rel=1e-6)

    def classes(points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            seen = network.logits(torch.from_numpy(points).float()).argmax(1).numpy()
        return np.bincount(seen, minlength=3) / len(points)

    assert values["classes_covered"] == (classes(fake) > 0.01).sum()
    variation = np.abs(classes(fake) - classes(real)).sum() / 2
    assert values["class_total_variation"] == pytest.approx(variation, rel=1e-12)

    drawn = scorer.real.views[0].rows  # an even draw, whose rows are real images' features
    assert drawn.shape == (SAMPLES, 64)
    distances = np.linalg.norm(drawn[:, None] - real[None], axis=2)
    assert distances.min(1).max() < 1e-4
    starts = np.cumsum([0, *SIZES])
    holders = np.searchsorted(starts, distances.argmin(1), side="right")
    shares = np.bincount(holders, minlength=5)[1:] / SAMPLES
    assert np.abs(shares - np.array(SIZES) / sum(SIZES)).max() < 1.5 / SAMPLES
    for name, value in plain_neighbours(drawn, fake).items():
        assert values[f"{name}_classifier-00000000"] == pytest.approx(value, abs=1e-9)


def test_ranks_and_their_number_do_not_change_a_score(comm, tmp_path):
    """The same through one rank alone and through all."""
    from mpi4py import MPI

    link, alone = Link(comm), Link(MPI.COMM_SELF)
    directory = tmp_path / f"alone {link.rank}"
    directory.mkdir()
    together = make_scorer(link, tmp_path, ranks=link.size, rank=link.rank, on_every_rank=False)
    single = make_scorer(alone, directory, ranks=1, rank=0, on_every_rank=False)
    values = together.measure(together.see(fakes, rank=link.rank, size=link.size))
    expected = single.measure(single.see(fakes, rank=0, size=1))
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
    assert values["kid_std_classifier-00000000"] > 0


def test_sums_of_real_images_are_remembered_and_a_damaged_file_is_not(comm, tmp_path):
    link = Link(comm)
    directory = comm.bcast(tmp_path)

    def score() -> dict[str, float]:
        scorer = make_scorer(link, directory, ranks=link.size, rank=link.rank, on_every_rank=False)
        return scorer.measure(scorer.see(fakes, rank=link.rank, size=link.size))

    first = score()
    (file,) = (directory / ".statistics").glob("*.npz")
    assert score() == first
    if link.is_server:
        file.write_bytes(file.read_bytes()[:1000])
    comm.barrier()
    assert score() == first
    if link.is_server:  # what is remembered counts: other sums, another score
        with np.load(file) as sums:
            changed = sums["arr_0"].copy()
        changed[:3] = [1, 1, 1]  # images of each class
        np.savez(file, changed)
    comm.barrier()
    assert score()["class_total_variation"] > first["class_total_variation"] + 0.5
