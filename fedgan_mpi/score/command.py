"""Scores one set of images against another, by the code of training and `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedgan_mpi import plugins
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config, EvaluationConfig, ModelConfig
from fedgan_mpi.config.evaluation import least_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.extractors import check_channels, read_extractors
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.image_classes import ImageClasses, find_classes
from fedgan_mpi.evaluation.metrics import (
    Metric,
    compute_metrics,
    make_metrics,
    need_classes,
    need_features,
    own_rows,
)
from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.hardware.placement import choose_torch_device, set_threads
from fedgan_mpi.run.output import print_line
from fedgan_mpi.score.image_sets import ImageSet, Shards, Wanted, default_samples, open_set


def score(
    link: Link,
    a: Path,
    b: Path,
    *,
    samples: int | None = None,
    metrics: tuple[str, ...] = ("frechet",),
    extractor: str | None = None,
    imagenet_size: int = 224,
    inception_weights: str | None = None,
    networks: str | None = None,
    out: Path | None = None,
) -> None:
    """Print the metrics of two sets of images, and write them to `out`. Collective.

    a, b: A folder or archive of pictures, a directory of shards, a shard's .h5 file, a generator's
        .safetensors file, or a run directory, whose best generator counts. `b` is the reference.
    samples: Images of each set. None: all; a generator draws as many as the other set has.
    extractor: None: that of the shards if a set has one, otherwise imagenet.
    networks: Import string of a generator's networks, if they are neither built in nor installed.
    out: JSON file.

    Raises AgreedError if a set is missing or unreadable, or does not suit the extractor.
    """
    link.watch(None, required=False)
    named = [name for name in (networks, extractor) if name]
    plugins.allow([*named, *link.from_server(plugins.allowed)])
    sets = [open_set(link, path, networks) for path in (a, b)]
    shards = next((each.features for each in reversed(sets) if each.features is not None), None)
    name = extractor or ("imagenet" if shards is None else "shards")
    config = link.on_every_rank(
        lambda: EvaluationConfig(
            extractor=name,
            metrics=metrics,
            imagenet_size=imagenet_size,
            inception_weights=inception_weights,
        )
    )
    measures = link.on_every_rank(lambda: make_metrics(config.metrics, config.metric_options))
    device = choose_torch_device(Config(), link)
    set_threads(Config(), cores=link.local_cores, ranks=link.local_size)
    extractors = read_extractors(link, config, sets[0].shape, shards, device)

    def check() -> None:
        if own_rows(measures) and not isinstance(sets[1], Shards):
            raise UserError(f"--metrics has a score of devices, but {b} is no directory of shards")
        if not extractors:
            raise UserError(f"{b} has no feature extractor; add --evaluation.extractor imagenet")
        for each in sets:
            _check_shape(each, config.extractor, extractors[0])
            _check_samples(each, samples, least_samples(metrics))

    link.from_server(check)
    counts = [_samples(each, sets, samples) for each in sets]
    # Of all images of devices, single ones are drawn, as many as of the other set.
    drawn = samples or min(counts)
    rows = [min(n, drawn) if each.uses_all else n for each, n in zip(sets, counts, strict=True)]
    own, needs = own_rows(measures), need_features(measures)
    classes = _classes(link, sets, extractors, measures, shards)
    wanted = partial(Wanted, seed=sets[0].seed or sets[1].seed, classes=classes)
    # Features of single real images stay on their rank, unless a metric needs them elsewhere.
    fake = sets[0].statistics(
        link, extractors, wanted(samples=counts[0], rows=rows[0] if needs or own else 0)
    )
    real = sets[1].statistics(
        link, extractors, wanted(samples=counts[1], rows=rows[1] if needs else 0, own_rows=own)
    )
    values: dict[str, float] = {}
    for of_fake, of_real in zip(fake.per_extractor, real.per_extractor, strict=True):
        values |= compute_metrics(link, measures, of_fake, of_real)

    link.from_server(lambda: _report((a, b), counts, values, out))


def _report(
    paths: tuple[Path, Path], counts: list[int], values: Mapping[str, float], out: Path | None
) -> None:
    a, b = paths
    print_line(f"{a}: {counts[0]} images; {b}: {counts[1]} images")
    for name, value in values.items():
        print_line(f"  {name} {value:.6g}")
    if out is not None:
        table: dict[str, Any] = {"a": str(a), "b": str(b), "images": counts, "values": values}
        with explain_write_errors(out):
            write_complete(out, (json.dumps(table, indent=1) + "\n").encode())


def _classes(
    link: Link,
    sets: Sequence[ImageSet],
    extractors: Sequence[Extractor],
    measures: Mapping[str, Metric],
    shards: Path | None,
) -> ImageClasses | None:
    """Return the rule of classes as in `evaluate`: labels, if a generator was asked for classes,
    else the classifier of the shards. None if no metric needs it. Collective."""
    a, b = sets
    has_labels = (a.is_conditional or b.is_conditional) and a.classes == b.classes > 0
    return find_classes(
        link,
        Config(model=ModelConfig(conditional=has_labels)),
        extractors,
        is_needed=need_classes(measures),
        classes=a.classes,
        shards=shards,
    )


def _samples(each: ImageSet, sets: list[ImageSet], samples: int | None) -> int:
    if each.uses_all:
        assert each.images is not None
        return each.images
    if samples is not None:
        return samples
    return default_samples(*sets) if each.images is None else each.images


def _check_shape(each: ImageSet, name: str, extractor: Extractor) -> None:
    if name == "imagenet":
        check_channels("evaluation.extractor imagenet", each.shape)
    elif each.shape != extractor.image_shape:
        raise UserError(
            f"{each.path} has images of the shape {each.shape}, but the extractor needs "
            f"{extractor.image_shape}; use --evaluation.extractor imagenet, or resize them"
        )


def _check_samples(each: ImageSet, samples: int | None, least: int) -> None:
    if samples is not None and each.images is not None and samples > each.images:
        raise UserError(f"--samples is {samples}, but {each.path} has {each.images} images")
    if each.images is not None and each.images < least:
        raise UserError(f"{each.path} has {each.images} images, but a score needs at least {least}")
