"""Commands that one process executes without MPI, and their flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedgan_mpi.cli.job_flags import Jobs, parse_jobs
from fedgan_mpi.cli.parser import (
    MAX_SECONDS,
    MAX_SEED,
    add_architecture,
    check_range,
    new_parser,
    optional_path,
    parse_flags,
)
from fedgan_mpi.config.parsing import Parser
from fedgan_mpi.config.paths import user_path
from fedgan_mpi.errors import UserError
from fedgan_mpi.schema import MAX_INTEGER


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The command `sample`."""

    run: Path
    count: int
    out: Path
    seed: int
    label: int | None
    style: Literal["grid", "interpolation", "classes"]
    truncation: float | None
    standing_batches: int
    networks: str | None


@dataclass(frozen=True, kw_only=True)
class Export:
    """The command `export`."""

    run: Path
    kind: Literal["onnx", "torchexport"]
    out: Path | None
    standing_batches: int
    networks: str | None


@dataclass(frozen=True, kw_only=True)
class Compare:
    """The command `compare`."""

    runs: tuple[Path, ...]
    out: Path
    target: float | None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The command `watch`."""

    run: Path
    seconds: float
    once: bool


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """The command `plugins`."""


LocalCommand = Sample | Export | Compare | Watch | Jobs | Plugins
"""Commands that one process executes without MPI."""

_GENERATOR_HELP = "run directory, or a generator's .safetensors file"


def _parse_sample(arguments: list[str]) -> Sample:
    parser = new_parser("sample RUN [flags]", "Draw images from a trained generator.")
    parser.add_argument("run", type=str, help=_GENERATOR_HELP)
    parser.add_argument("--count", type=int, default=64, help="number of images")
    parser.add_argument(
        "--out",
        type=str,
        default="samples.png",
        help="PNG file to write, or .npz file for the array `images`, (N, H, W, C); a FIFO or "
        "/dev/stdout gets the same bytes",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the latent vectors")
    parser.add_argument(
        "--label", type=int, default=None, help="conditional generators: class of all images"
    )
    parser.add_argument(
        "--style",
        type=Literal["grid", "interpolation", "classes"],
        default="grid",
        help="grid: independent images; interpolation: each row interpolates between two images; "
        "classes: one row per class",
    )
    parser.add_argument(
        "--truncation",
        type=float,
        default=None,
        help="largest component of the latent vectors, such as 1.0: more typical, less varied "
        "images; if omitted, no limit",
    )
    _add_standing_batches(parser)
    add_architecture(parser)
    args = parse_flags(parser, arguments)
    if args.truncation is not None and not 0 < args.truncation < math.inf:
        raise UserError(f"--truncation is {args.truncation}, but must be above 0 and finite")
    check_range("--standing-batches", args.standing_batches, 0, MAX_INTEGER)
    if args.label is not None:
        check_range("--label", args.label, 0, MAX_INTEGER)
        if args.style != "grid":
            raise UserError(f"--label is {args.label}, but must be left out unless --style is grid")
    check_range("--count", args.count, 1, MAX_INTEGER)
    check_range("--seed", args.seed, 0, MAX_SEED)
    return Sample(
        run=user_path(args.run),
        count=args.count,
        out=user_path(args.out),
        seed=args.seed,
        label=args.label,
        style=args.style,
        truncation=args.truncation,
        standing_batches=args.standing_batches,
        networks=args.model.architecture,
    )


def _add_standing_batches(parser: Parser) -> None:
    parser.add_argument(
        "--standing-batches",
        type=int,
        default=0,
        help="recompute BatchNorm's statistics from this many batches of 256 generated images; 0: "
        "those of training",
    )


def _parse_export(arguments: list[str]) -> Export:
    parser = new_parser(
        "export RUN --format FORMAT [flags]",
        "Convert a generator for other programs, and check that it draws the same images.",
    )
    parser.add_argument("run", type=str, help=_GENERATOR_HELP)
    parser.add_argument(
        "--format",
        type=Literal["onnx", "torchexport"],
        required=True,
        help="onnx: ONNX model; torchexport: program of torch.export (.pt2)",
    )
    parser.add_argument(
        "--out", type=str, default=None, help="file to write; if omitted, next to the generator"
    )
    _add_standing_batches(parser)
    add_architecture(parser)
    args = parse_flags(parser, arguments)
    check_range("--standing-batches", args.standing_batches, 0, MAX_INTEGER)
    return Export(
        run=user_path(args.run),
        kind=args.format,
        out=optional_path(args.out),
        standing_batches=args.standing_batches,
        networks=args.model.architecture,
    )


def _parse_compare(arguments: list[str]) -> Compare:
    parser = new_parser(
        "compare RUN RUN … [flags]",
        "Compare runs: write a table, curves and an HTML page. Runs that differ only in their seed "
        "form one group.",
    )
    parser.add_argument("runs", type=str, nargs="+", help="run directories")
    parser.add_argument("--out", type=str, default="report", help="directory to write")
    parser.add_argument(
        "--target",
        type=float,
        default=None,
        help="Fréchet distance for which the table gives the cost; if omitted, the lowest one that "
        "all groups reach",
    )
    args = parse_flags(parser, arguments)
    return Compare(
        runs=tuple(map(user_path, args.runs)), out=user_path(args.out), target=args.target
    )


def _parse_watch(arguments: list[str]) -> Watch:
    parser = new_parser(
        "watch RUN [flags]",
        "Follow a running job in the terminal: losses, scores, path of the last sample grid.",
    )
    parser.add_argument("run", type=str, help="run directory")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds between updates")
    parser.add_argument("--once", action="store_true", help="print once and exit")
    args = parse_flags(parser, arguments)
    check_range("--seconds", args.seconds, 0.1, MAX_SECONDS)
    return Watch(run=user_path(args.run), seconds=args.seconds, once=args.once)


def _parse_plugins(arguments: list[str]) -> Plugins:
    parser = new_parser(
        "plugins", "List built-in and installed algorithms, networks, losses and optimizers."
    )
    parse_flags(parser, arguments)
    return Plugins()


LOCAL_PARSERS: dict[str, Callable[[list[str]], LocalCommand]] = {
    "sample": _parse_sample,
    "export": _parse_export,
    "compare": _parse_compare,
    "watch": _parse_watch,
    "jobs": parse_jobs,
    "plugins": _parse_plugins,
}
"""Name of a command -> its parser."""
