"""Floors and copies are judged by held-out images of all classes, also if a file is sorted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.real_images import BLOCK, heldout_stats

CLASSES, EACH = 10, 300


def sorted_shard() -> Shard:
    labels = np.repeat(np.arange(CLASSES), EACH)
    images = np.arange(len(labels), dtype=np.uint16).reshape(-1, 1, 1, 1)
    return Shard(path=Path("heldout"), images=images, labels=labels, sha256="")


@pytest.mark.parametrize("count", [CLASSES, 200, 1999, CLASSES * EACH])
def test_even_indices_differ_and_take_each_class_equally_often(count: int) -> None:
    shard = sorted_shard()
    indices = shard.even_indices(count)
    assert len(indices) == count and (np.diff(indices) > 0).all() and indices[-1] < len(shard)
    assert shard.labels is not None
    taken = np.bincount(shard.labels[indices], minlength=CLASSES)
    assert taken.max() - taken.min() <= 1
    if count == len(shard):
        assert (indices == np.arange(count)).all()


@pytest.mark.parametrize("ranks", [1, 3])
def test_floors_use_all_classes_of_a_sorted_file_once_on_any_number_of_ranks(ranks: int) -> None:
    samples = 2 * BLOCK + 7
    real: Any = SimpleNamespace(heldout=sorted_shard(), heldout_everywhere=True)
    seen: dict[int, int] = {}

    def accumulate(images: Any, labels: Any, *, row: int) -> None:
        assert (labels == images.ravel() // EACH).all()
        seen.update(enumerate(images.ravel().tolist(), start=row))

    empty: Any = SimpleNamespace(accumulate=accumulate)
    for rank in range(ranks):
        link: Any = SimpleNamespace(rank=rank, size=ranks)
        heldout_stats(link, real, empty, samples=samples)
    assert sorted(seen) == list(range(samples))
    classes = np.bincount([image // EACH for image in seen.values()], minlength=CLASSES)
    assert len(set(seen.values())) == samples and classes.max() - classes.min() <= 1
