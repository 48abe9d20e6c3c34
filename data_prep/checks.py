"""Finds contradictions in a source's tables before any image is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.sources.base import ArraySource, Source
from fedgan_mpi.data.manifest import is_plain_name


def find_problem(source: Source) -> str | None:
    """Return what is wrong with a source, as a clause, or None."""
    return next(_find_problems(source), None)


def _find_problems(source: Source) -> Iterator[str]:
    count = len(source)
    if count < 1:
        yield "it has no images"
    name: Any = source.name
    if not isinstance(name, str) or not is_plain_name(name):
        yield f"its name is {name!r}, but must be usable as the name of a file"
    channels = getattr(source, "channels", None)
    if not (isinstance(channels, int) and channels >= 1):
        yield f"its channels are {channels}, but must be a number of at least 1"
    yield from _find_label_problems(source, count)
    yield from _find_heldout_problems(source.heldout, count)
    if isinstance(source, ArraySource):
        yield from _find_array_problems(source)
    size: Any = source.default_size
    if size is not None and not (isinstance(size, int) and size > 0):
        yield f"its default_size is {size!r}, but must be a number of pixels, or None"
    keys = source.keys
    if len(keys) != count or not all(isinstance(key, str) for key in keys):
        yield f"its keys must be {count:,} texts, one for each image, but are {len(keys):,}"


def _find_label_problems(source: Source, count: int) -> Iterator[str]:
    labels: Any = source.labels
    names: Any = getattr(source, "class_names", None)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield f"its class_names are {names!r}, but must be a list of texts, empty without classes"
    if labels is None:
        if names:
            yield f"it has {len(names)} class_names, but no labels"
        return
    shape, dtype = getattr(labels, "shape", None), getattr(labels, "dtype", type(labels).__name__)
    if shape != (count,) or getattr(dtype, "kind", "") not in ("i", "u"):
        yield f"its labels are {dtype} {shape or ''}, but must be an integer array ({count},)"
    least, greatest = int(labels.min()), int(labels.max())
    if least < 0 or greatest >= len(names):
        wrong = least if least < 0 else greatest
        yield f"it has the label {wrong}, but {len(names)} class_names"


def _find_heldout_problems(heldout: Any, count: int) -> Iterator[str]:
    if heldout is None:
        return
    if not isinstance(heldout, np.ndarray) or heldout.ndim != 1 or heldout.dtype.kind not in "iu":
        yield "its heldout must be None or an array of indices"
    if len(heldout) and not (heldout.min() >= 0 and heldout.max() < count):
        yield f"its heldout has the index {heldout.max()}, but it has {count:,} images"
    if len(np.unique(heldout)) < len(heldout):
        yield "its heldout has an index twice"
    if len(heldout) == count:
        yield "all of its images are held out"


def _find_array_problems(source: ArraySource) -> Iterator[str]:
    images: Any = getattr(source, "images", None)
    shape: Any = getattr(images, "shape", None)
    dtype = getattr(images, "dtype", type(images).__name__)
    if not isinstance(images, np.ndarray) or images.dtype.kind not in "uif" or images.ndim != 4:
        yield f"its images are {dtype} {shape or ''}, but must be uint8 (N, C, H, W)"
    if images.dtype != np.uint8 and not source.is_deep:
        yield f"its images are {dtype} {shape}, but must be uint8 (N, C, H, W), or is_deep True"
    if shape[1] != source.channels:
        yield f"its images have {shape[1]} channels, but it says {source.channels}"
    if 0 in shape:
        yield f"its images have the shape {shape}"
