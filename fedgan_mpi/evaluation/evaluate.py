"""The command `evaluate`: scores all checkpoints and generators of a run, on any number of ranks.

Scores are appended to evaluation.jsonl in the run directory. A generator with a score of the same
settings is not scored again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fedgan_mpi.checkpoint.format import SERVER, checkpoints_of, read_content, read_manifest
from fedgan_mpi.comm.link import Link
from fedgan_mpi.data.loading import scored_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.generation import generate
from fedgan_mpi.evaluation.image_classes import find_classes
from fedgan_mpi.evaluation.metrics import make_metrics, need_classes
from fedgan_mpi.evaluation.open_run import open_run, read_generator
from fedgan_mpi.evaluation.scorer import Scorer
from fedgan_mpi.files import explain_write_errors, sha256_of, write_complete
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.generator_about import read_about
from fedgan_mpi.run.generator_file import BEST, FINAL
from fedgan_mpi.run.output import print_line
from fedgan_mpi.run.stats import read_text_lines
from fedgan_mpi.schema import Count, SchemaError, check, parse_json

EVALUATION = "evaluation.jsonl"


class _Line(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A line of evaluation.jsonl."""

    round: Count
    metric: str
    value: float
    floor: float
    samples: Count
    of: dict[str, Any]
    """The generator and the settings. A score of other settings is not read again."""


def evaluate(
    link: Link,
    run: Path,
    *,
    shards: Path | None = None,
    samples: int | None = None,
    metrics: Sequence[str] | None = None,
    imagenet_size: int | None = None,
    inception_weights: str | None = None,
    networks: str | None = None,
    extractor: str | None = None,
) -> None:
    """Score each generator of a run and print all its scores. Collective.

    An option that is None has its value in the run's config.toml.

    shards: The directory of the shards.
    networks: Import string of the run's networks, if they are neither built in nor installed.
    extractor: Name or import string of the feature extractor.

    Raises AgreedError if a file is missing or damaged.
    """
    options = {
        "samples": samples,
        "metrics": metrics,
        "extractor": extractor,
        "imagenet_size": imagenet_size,
        "inception_weights": inception_weights,
    }
    opened = open_run(link, run, shards, options, networks)
    config, seed = opened.config, opened.config.run.seed
    samples = scored_samples(config, opened.heldout)
    settings = {
        "samples": samples,
        "seed": seed,
        "metrics": list(config.evaluation.metrics),
        "extractors": [extractor.metric("frechet") for extractor in opened.extractors],
    }
    evaluation = config.evaluation
    metrics_by_name = link.on_every_rank(
        lambda: make_metrics(evaluation.metrics, evaluation.metric_options)
    )
    classes = find_classes(
        link,
        config,
        opened.extractors,
        is_needed=need_classes(metrics_by_name),
        classes=opened.classes,
        shards=opened.features,
    )
    names = link.from_server(lambda: _find_generators(run))
    lines = link.from_server(lambda: _read_lines(run))
    scorer: Scorer | None = None
    for name in names:
        sha256 = link.from_server(partial(_hash, run / name))
        key = {"generator": name, "sha256": sha256, **settings}
        if not any(line["of"] == key for line in lines):
            scorer = scorer or Scorer(
                link,
                opened.extractors,
                opened.real,
                metrics=metrics_by_name,
                samples=samples,
                seed=seed,
                classes=classes,
            )
            generator = read_generator(link, opened.pair, run / name)
            images = partial(
                generate,
                opened.pair,
                generator,
                seed=seed,
                purpose=Purpose.SCORE,
                dtype=opened.dtype,
            )
            values = scorer.finish(scorer.accumulate(images, rank=link.rank, size=link.size))
            round = link.from_server(partial(_round_of, run / name))
            lines += [{**line, "of": key} for line in scorer.lines(round, values)]
            link.from_server(partial(_write_lines, run, lines))
        if link.is_server:
            _print([line for line in lines if line["of"] == key])
    link.barrier()


def _find_generators(run: Path) -> list[str]:
    """Return the checkpoints in the order of rounds, then the exported generators."""
    names = [f"checkpoints/{path.name}" for path in checkpoints_of(run)]
    exported = [f"{name}.safetensors" for name in (FINAL, BEST)]
    names += [name for name in exported if (run / name).exists()]
    if not names:
        raise UserError(f"{run} has no checkpoint and no {FINAL}.safetensors to score")
    return names


def _hash(path: Path) -> str:
    if path.is_dir():
        manifest = read_manifest(path)
        read_content(manifest, SERVER)  # verifies the file against the manifest
        return str(manifest.files[SERVER]["sha256"])
    return sha256_of(path)


def _round_of(path: Path) -> int:
    if path.is_dir():
        return int(path.name.removeprefix("round_"))
    return int(read_about(path.with_suffix(".json")).get("round", 0))


def _read_lines(run: Path) -> list[dict[str, Any]]:
    path = run / EVALUATION
    if not path.exists():
        return []
    try:
        lines = [parse_json(line, allow_nan=True) for line in read_text_lines(path)]
        for line in lines:
            check(line, _Line)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise UserError(f"{path} is damaged; delete it to score again ({error})") from None
    return lines


def _write_lines(run: Path, lines: list[dict[str, Any]]) -> None:
    path = run / EVALUATION
    with explain_write_errors(path):
        write_complete(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _print(lines: list[dict[str, Any]]) -> None:
    key = lines[0]["of"]
    print_line(f"{key['generator']}, round {lines[0]['round']}, {key['samples']} images")
    for line in lines:
        print_line(
            f"  {line['metric']} {line['value']:.5g} (held-out real images {line['floor']:.5g})"
        )
