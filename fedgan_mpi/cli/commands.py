"""The commands beside `train`: what they take, and which of them need MPI. `command_line.py` parses
the configuration of an experiment; this file the few flags of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedgan_mpi.cli.parser import Train, new_parser, parse_flags, parse_train
from fedgan_mpi.config import METRICS, Metric, check_metrics
from fedgan_mpi.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """`evaluate`: scores of what a run has left."""

    run: Path
    shards: Path | None
    samples: int | None
    metrics: tuple[str, ...] | None
    inception_weights: str | None


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """`neighbours`: the nearest training images of fakes."""

    run: Path
    shards: Path | None
    count: int
    show_images: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """`sample`: images from a trained generator."""

    run: Path
    count: int
    out: Path
    seed: int
    label: int | None
    style: Literal["grid", "interpolation", "classes"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """`export`: a trained generator for programs without this one."""

    run: Path
    kind: Literal["onnx", "torchexport"]
    out: Path | None


@dataclass(frozen=True, kw_only=True)
class Compare:
    """`compare`: a page, curves and a table of several runs."""

    runs: tuple[Path, ...]
    out: Path
    target: float | None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """`watch`: what a run is at."""

    run: Path
    seconds: float
    once: bool


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """`jobs`: a batch script."""

    devices: int
    gpus_per_node: int
    time: str


Together = Train | Evaluate | Memorization
"""Commands of a whole world of ranks."""
Alone = Sample | Export | Compare | Watch | Jobs
"""Commands of one process, which need no MPI."""


def runs_alone(arguments: list[str]) -> bool:
    """Whether the command is one of `Alone`."""
    return arguments[:1] in (["sample"], ["export"], ["compare"], ["watch"], ["jobs"])


def parse(arguments: list[str]) -> Together | Alone:
    """The command that the arguments name. Raises UserError; prints and raises SystemExit for
    --help."""
    parsers: dict[str, Callable[[list[str]], Together | Alone]] = {
        "train": parse_train,
        "evaluate": _parse_evaluate,
        "neighbours": _parse_neighbours,
        "sample": _parse_sample,
        "export": _parse_export,
        "compare": _parse_compare,
        "watch": _parse_watch,
        "jobs": _parse_jobs,
    }
    if arguments and arguments[0] in parsers:
        return parsers[arguments[0]](arguments[1:])
    return parse_train(arguments)


def _parse_evaluate(arguments: list[str]) -> Evaluate:
    about = "Score what a run has left, on any number of ranks; lines go to evaluation.jsonl in it."
    parser = new_parser("evaluate RUN [flags]", about)
    parser.add_argument("run", type=str, help="run directory")
    parser.add_argument("--shards", type=str, default=None, help="where the run's shards are now")
    samples = "images a score; default: as in the run"
    parser.add_argument("--samples", type=int, default=None, help=samples)
    metrics_help = f"of {', '.join(METRICS)}, with commas; default: as in the run"
    parser.add_argument("--metrics", type=str, default=None, help=metrics_help)
    weights = "file weights-inception-2015-12-05-6726825d.pth, for fid_inception"
    parser.add_argument("--inception-weights", type=str, default=None, help=weights)
    args = parse_flags(parser, arguments)
    return Evaluate(
        run=Path(args.run),
        shards=_path(args.shards),
        samples=args.samples,
        metrics=None if args.metrics is None else _metrics(args.metrics),
        inception_weights=args.inception_weights,
    )


def _metrics(text: str) -> tuple[Metric, ...]:
    names = text.split(",")
    for name in names:
        if name not in METRICS:
            raise UserError(f"--metrics has {name!r}, but must be of {', '.join(METRICS)}")
    metrics = tuple(known for name in names for known in METRICS if known == name)
    check_metrics("--metrics", metrics)
    return metrics


def _parse_neighbours(arguments: list[str]) -> Memorization:
    about = (
        "Look for copies: each generated image's nearest training image, found on the rank that "
        "holds it. Distances leave it; images only with --show-images. Any number of ranks."
    )
    parser = new_parser("neighbours RUN [flags]", about)
    parser.add_argument("run", type=str, help="run directory")
    parser.add_argument("--shards", type=str, default=None, help="where the run's shards are now")
    parser.add_argument("--count", type=int, default=64, help="generated images")
    show = "let the nearest training images leave their devices, for neighbours.png"
    parser.add_argument("--show-images", action="store_true", help=show)
    args = parse_flags(parser, arguments)
    _check_least("--count", args.count, 1)
    return Memorization(
        run=Path(args.run),
        shards=_path(args.shards),
        count=args.count,
        show_images=args.show_images,
    )


def _parse_sample(arguments: list[str]) -> Sample:
    about = "Draw images from the generator of a run directory."
    parser = new_parser("sample RUN [flags]", about)
    parser.add_argument("run", type=str, help="run directory, or a generator's .safetensors file")
    parser.add_argument("--count", type=int, default=64, help="number of images")
    parser.add_argument("--out", type=str, default="samples.png", help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--label", type=int, default=None, help="class, if G is conditional")
    style = "grid, rows that go from one image to another, or a row for each class"
    styles = Literal["grid", "interpolation", "classes"]
    parser.add_argument("--style", type=styles, default="grid", help=style)
    args = parse_flags(parser, arguments)
    if args.label is not None:
        _check_least("--label", args.label, 0)
        if args.style != "grid":
            raise UserError("--label is for --style grid; leave it out")
    _check_least("--count", args.count, 1)
    _check_least("--seed", args.seed, 0)
    return Sample(
        run=Path(args.run),
        count=args.count,
        out=Path(args.out),
        seed=args.seed,
        label=args.label,
        style=args.style,
    )


def _parse_export(arguments: list[str]) -> Export:
    about = "Write the generator for other programs, checked to draw the same images."
    parser = new_parser("export RUN --format FORMAT [flags]", about)
    parser.add_argument("run", type=str, help="run directory, or a generator's .safetensors file")
    kinds = "onnx, or torch.export's program (.pt2)"
    parser.add_argument("--format", type=Literal["onnx", "torchexport"], required=True, help=kinds)
    out = "file to write; default: beside the generator"
    parser.add_argument("--out", type=str, default=None, help=out)
    args = parse_flags(parser, arguments)
    return Export(run=Path(args.run), kind=args.format, out=_path(args.out))


def _parse_compare(arguments: list[str]) -> Compare:
    about = "Runs beside each other: a table, curves, and one HTML page. Seeds are grouped."
    parser = new_parser("compare RUN RUN … [flags]", about)
    parser.add_argument("runs", type=str, nargs="+", help="run directories")
    parser.add_argument("--out", type=str, default="report", help="directory to write")
    target = "score whose cost is told; default: the best that all configurations reach"
    parser.add_argument("--target", type=float, default=None, help=target)
    args = parse_flags(parser, arguments)
    runs = tuple(Path(run) for run in args.runs)
    return Compare(runs=runs, out=Path(args.out), target=args.target)


def _parse_watch(arguments: list[str]) -> Watch:
    about = "Follow a running job in the terminal: losses, scores, the last grid's path."
    parser = new_parser("watch RUN [flags]", about)
    parser.add_argument("run", type=str, help="run directory")
    parser.add_argument("--seconds", type=float, default=2.0, help="between looks")
    parser.add_argument("--once", action="store_true", help="look once")
    args = parse_flags(parser, arguments)
    _check_least("--seconds", args.seconds, 0.1)
    return Watch(run=Path(args.run), seconds=args.seconds, once=args.once)


def _parse_jobs(arguments: list[str]) -> Jobs:
    about = "Print a SLURM script that trains, to be edited or submitted as it is."
    parser = new_parser("jobs [flags] > my.sbatch", about)
    parser.add_argument("--devices", type=int, default=8, help="device ranks; one task more serves")
    gpus = "GPUs of a node, a task each; 0: train on CPUs"
    parser.add_argument("--gpus-per-node", type=int, default=0, help=gpus)
    parser.add_argument("--time", type=str, default="01:00:00", help="limit, as SLURM has it")
    args = parse_flags(parser, arguments)
    _check_least("--devices", args.devices, 1)
    _check_least("--gpus-per-node", args.gpus_per_node, 0)
    return Jobs(devices=args.devices, gpus_per_node=args.gpus_per_node, time=args.time)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _check_least(flag: str, value: Any, least: float) -> None:
    if not value >= least:
        raise UserError(f"{flag} is {value}, but must be at least {least}")
