"""Parses the command line: its command, and the flags of commands that run on MPI ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedgan_mpi import plugins
from fedgan_mpi.cli.completion import is_completing, typed_command
from fedgan_mpi.cli.local_commands import LOCAL_PARSERS, LocalCommand
from fedgan_mpi.cli.parser import (
    Train,
    add_architecture,
    add_extractor,
    check_range,
    new_parser,
    optional_path,
    parse_flags,
    parse_train,
)
from fedgan_mpi.config import check_metrics
from fedgan_mpi.config.evaluation import least_samples
from fedgan_mpi.config.parsing import Parser
from fedgan_mpi.config.paths import user_path
from fedgan_mpi.schema import MAX_INTEGER


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The command `evaluate`."""

    run: Path
    shards: Path | None
    samples: int | None
    metrics: tuple[str, ...] | None
    imagenet_size: int | None
    inception_weights: str | None
    networks: str | None
    extractor: str | None


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """The command `memorization`."""

    run: Path
    shards: Path | None
    count: int
    show_images: bool
    show_devices: bool
    networks: str | None
    extractor: str | None


@dataclass(frozen=True, kw_only=True)
class Score:
    """The command `score`."""

    a: Path
    b: Path
    samples: int | None
    metrics: tuple[str, ...]
    imagenet_size: int
    inception_weights: str | None
    out: Path | None
    networks: str | None
    extractor: str | None


MpiCommand = Train | Evaluate | Memorization | Score
"""Commands that all ranks of an MPI world execute."""


def is_local(arguments: list[str]) -> bool:
    """Return whether the arguments name a command that needs no MPI."""
    return bool(arguments) and arguments[0] in LOCAL_PARSERS


def parse(arguments: list[str]) -> MpiCommand | LocalCommand:
    """Parse a command line. Raises UserError, and SystemExit after printing help."""
    parsers = {**_MPI_PARSERS, **LOCAL_PARSERS}
    if is_completing():
        arguments = typed_command(parsers)
    if arguments and arguments[0] in parsers:
        return parsers[arguments[0]](arguments[1:])
    return parse_train(arguments)


def _parse_evaluate(arguments: list[str]) -> Evaluate:
    parser = new_parser(
        "evaluate RUN [flags]",
        "Score the checkpoints and generators of a run, on 1 or more ranks. Scores go to "
        "evaluation.jsonl in the run directory. Ranks exchange sums of image features. If a device "
        "has one image, these are the features of that image.",
    )
    _add_run_and_shards(parser)
    parser.add_argument(
        "--samples",
        type=int,
        default=None,
        help="generated images per score; if omitted, as in the run",
    )
    parser.add_argument(
        "--metrics",
        type=str,
        default=None,
        help="comma-separated list, as evaluation.metrics; if omitted, as in the run; kid and prdc "
        "send features of single real images to all ranks",
    )
    _add_imagenet_size(parser, None)
    _add_inception_weights(parser)
    args = parse_flags(parser, arguments)
    return Evaluate(
        run=user_path(args.run),
        shards=optional_path(args.shards),
        samples=args.samples,
        metrics=None if args.metrics is None else _parse_metrics(args.metrics),
        imagenet_size=args.imagenet_size,
        inception_weights=args.inception_weights,
        networks=args.model.architecture,
        extractor=args.evaluation.extractor,
    )


def _parse_metrics(text: str) -> tuple[str, ...]:
    metrics = tuple(text.split(","))
    plugins.allow(metrics)
    check_metrics("--metrics", metrics)
    return metrics


def _parse_memorization(arguments: list[str]) -> Memorization:
    parser = new_parser(
        "memorization RUN [flags]",
        "Check whether the generator copies training images: find the nearest training image of "
        "each generated image, in the features of the scores. Each rank searches its own shards. "
        "The smallest distance of each generated image becomes known. If a device holds one image, "
        "these are distances to that image. Runs on 1 or more ranks.",
    )
    _add_run_and_shards(parser)
    parser.add_argument("--count", type=int, default=64, help="number of generated images")
    parser.add_argument(
        "--show-images",
        action="store_true",
        help="send the nearest training images to all ranks, and show them in the picture",
    )
    parser.add_argument(
        "--show-devices",
        action="store_true",
        help="let all ranks know which device holds the nearest training image of each generated "
        "image, and write it to memorization.json",
    )
    args = parse_flags(parser, arguments)
    check_range("--count", args.count, 1, MAX_INTEGER)
    return Memorization(
        run=user_path(args.run),
        shards=optional_path(args.shards),
        count=args.count,
        show_images=args.show_images,
        show_devices=args.show_devices,
        networks=args.model.architecture,
        extractor=args.evaluation.extractor,
    )


def _parse_score(arguments: list[str]) -> Score:
    parser = new_parser(
        "score A B [flags]",
        "Score the images A against the reference B, on 1 or more ranks. Each is a folder or an "
        "archive of pictures, a directory of shards, a shard's .h5 file, a generator's file "
        "(.safetensors), or a run directory.",
    )
    parser.add_argument("a", type=str, help="images to score")
    parser.add_argument("b", type=str, help="reference")
    parser.add_argument(
        "--samples",
        type=int,
        default=None,
        help="images of each set; if omitted, all, and a generator draws as many as the other set "
        "has, at most 10,000; a directory of shards always counts as a whole",
    )
    parser.add_argument(
        "--metrics",
        type=str,
        default="frechet",
        help="comma-separated list, as evaluation.metrics",
    )
    _add_imagenet_size(parser, 224)
    _add_inception_weights(parser)
    parser.add_argument("--out", type=str, default=None, help="JSON file to write")
    add_architecture(parser)
    add_extractor(parser)
    args = parse_flags(parser, arguments)
    metrics = _parse_metrics(args.metrics)
    if args.samples is not None:
        check_range("--samples", args.samples, least_samples(metrics), MAX_INTEGER)
    return Score(
        a=user_path(args.a),
        b=user_path(args.b),
        samples=args.samples,
        metrics=metrics,
        imagenet_size=args.imagenet_size,
        inception_weights=args.inception_weights,
        out=optional_path(args.out),
        networks=args.model.architecture,
        extractor=args.evaluation.extractor,
    )


def _add_imagenet_size(parser: Parser, default: int | None) -> None:
    parser.add_argument(
        "--imagenet-size", type=int, default=default, help="as evaluation.imagenet_size"
    )


def _add_inception_weights(parser: Parser) -> None:
    parser.add_argument(
        "--inception-weights",
        type=str,
        default=None,
        help="file weights-inception-2015-12-05-6726825d.pth; adds fid_inception",
    )


def _add_run_and_shards(parser: Parser) -> None:
    parser.add_argument("run", type=str, help="run directory")
    shards_help = "directory of the run's shards, if it has moved"
    parser.add_argument("--shards", type=str, default=None, help=shards_help)
    add_architecture(parser)
    add_extractor(parser)


_MPI_PARSERS: dict[str, Callable[[list[str]], MpiCommand]] = {
    "train": parse_train,
    "evaluate": _parse_evaluate,
    "memorization": _parse_memorization,
    "score": _parse_score,
    "neighbours": _parse_memorization,  # former name
}
