"""From arguments and TOML files to a checked command. jsonargparse parses; this file words what it
refuses.

Knows neither MPI nor torch, so that a mistake is told before anything slow is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from fedgan_mpi.config import METRICS, Config, check_metrics
from fedgan_mpi.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

COMMANDS = """commands:
  train [FILE.toml] [flags]   train a GAN; what runs when no command is named
  train --resume RUN          go on from the newest checkpoint of a run directory
  evaluate RUN [flags]        score all checkpoints and generators of a run, on any number of ranks
  sample RUN --count 64       draw images from a trained generator (no MPI needed)

  mpirun -n 9 python -m fedgan_mpi                       the embedded digits, 8 devices
  mpirun -n 9 python -m fedgan_mpi train run.toml --training.rounds 500
"""
PROVENANCE = (
    "provenance"  # the table of a run directory's config.toml that records rather than configures
)


@dataclass(frozen=True, kw_only=True)
class Train:
    config: Config
    resume: Path | None
    dry_run: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    run: Path
    count: int
    out: Path
    seed: int
    label: int | None


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    run: Path
    shards: Path | None
    samples: int | None
    metrics: tuple[str, ...] | None
    inception_weights: str | None


def wants_help(arguments: list[str]) -> bool:
    return any(argument in {"-h", "--help"} for argument in arguments)


def parse(arguments: list[str]) -> Train | Sample | Evaluate:
    """The command that the arguments name. Raises UserError; prints and raises SystemExit for
    --help."""
    if arguments[:1] == ["sample"]:
        return _parse_sample(arguments[1:])
    if arguments[:1] == ["evaluate"]:
        return _parse_evaluate(arguments[1:])
    return _parse_train(arguments[1:] if arguments[:1] == ["train"] else arguments)


def config_table(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as TOML tables; keys that are None are left out, as TOML has no null."""
    tables = dataclasses.asdict(config)
    return {
        section: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in table.items()
            if value is not None
        }
        for section, table in tables.items()
    }


def read_config(path: Path) -> Config:
    """The configuration in a TOML file. Raises UserError naming the file and the key."""
    parser = _config_parser()
    return _instantiate(parser, _parse_file(parser, path))


def _parse_train(arguments: list[str]) -> Train:
    parser = _config_parser()
    parser.add_argument("file", nargs="?", metavar="FILE.toml", help="the experiment")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run directory")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, sizes and bytes a round; do not train",
    )
    first = _parse_flags(parser, arguments)
    if first.file and first.resume:
        raise UserError(
            f"{first.file} and --resume {first.resume} both name an experiment; give one"
        )
    if not first.file and not first.resume:
        return Train(config=_instantiate(parser, first), resume=None, dry_run=first.dry_run)

    # Flags override the file: parse them once more, with the file's values as their defaults.
    path = Path(first.resume) / "config.toml" if first.resume else Path(first.file)
    from_file = _parse_file(_config_parser(), path)
    parser.set_defaults(dict(_leaves(from_file.as_dict())))
    config = _instantiate(parser, _parse_flags(parser, arguments))
    if first.resume:
        _check_resumable(_instantiate(parser, from_file), config)
    resume = Path(first.resume) if first.resume else None
    return Train(config=config, resume=resume, dry_run=first.dry_run)


def _check_resumable(before: Config, now: Config) -> None:
    """A resumed run is the same experiment, or a longer one."""
    for (key, old), (_, new) in zip(
        _leaves(dataclasses.asdict(before)), _leaves(dataclasses.asdict(now)), strict=True
    ):
        if old == new or (key == "training.rounds" and new > old):
            continue
        right = (
            f"more than {old!r}"
            if key == "training.rounds"
            else f"{old!r} as in the run that is resumed"
        )
        raise UserError(f"{key} is {new!r}, but must be {right}")


def _parse_sample(arguments: list[str]) -> Sample:
    parser = _parser("sample RUN [flags]", "Draw images from the generator of a run directory.")
    parser.add_argument("run", type=str, help="run directory, or a generator's .safetensors file")
    parser.add_argument("--count", type=int, default=64, help="number of images")
    parser.add_argument("--out", type=str, default="samples.png", help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--label", type=int, default=None, help="class, if G is conditional")
    args = _parse_flags(parser, arguments)
    if args.label is not None and args.label < 0:
        raise UserError(f"--label is {args.label}, but must be at least 0")
    if args.count < 1:
        raise UserError(f"--count is {args.count}, but must be at least 1")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}, but must be at least 0")
    return Sample(
        run=Path(args.run),
        count=args.count,
        out=Path(args.out),
        seed=args.seed,
        label=args.label,
    )


def _parse_evaluate(arguments: list[str]) -> Evaluate:
    parser = _parser("evaluate RUN [flags]", "Score what a run has left, on any number of ranks.")
    parser.add_argument("run", type=str, help="run directory")
    parser.add_argument("--shards", type=str, default=None, help="where the run's shards are now")
    parser.add_argument(
        "--samples", type=int, default=None, help="images a score; default: as in the run"
    )
    parser.add_argument(
        "--metrics",
        default=None,
        help="of frechet, classes, kid, prdc, with commas; default: as in the run",
    )
    parser.add_argument(
        "--inception-weights",
        type=str,
        default=None,
        help="file weights-inception-2015-12-05-6726825d.pth, for fid_inception",
    )
    args = _parse_flags(parser, arguments)
    metrics = None if args.metrics is None else tuple(args.metrics.split(","))
    for name in metrics or ():
        if name not in METRICS:
            raise UserError(f"--metrics has {name!r}, but must be of {', '.join(METRICS)}")
    if metrics is not None:
        check_metrics("--metrics", metrics)
    return Evaluate(
        run=Path(args.run),
        shards=None if args.shards is None else Path(args.shards),
        samples=args.samples,
        metrics=metrics,
        inception_weights=args.inception_weights,
    )


class _Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help with types and defaults; the list of commands keeps its lines."""


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(message) from ex


def _parser(usage: str, description: str) -> _Parser:
    usage = f"python -m fedgan_mpi {usage}"
    return _Parser(usage=usage, description=description, formatter_class=_Help, allow_abbrev=False)


def _config_parser() -> _Parser:
    parser = _parser(
        "[train] [FILE.toml] [--section.key VALUE …]",
        "Train a GAN over MPI: one server rank, the others hold the devices.",
    )
    parser.epilog = COMMANDS
    defaults = Config()
    for section in dataclasses.fields(Config):
        parser.add_class_arguments(type(getattr(defaults, section.name)), section.name)
    return parser


def _parse_flags(parser: _Parser, arguments: list[str]) -> jsonargparse.Namespace:
    try:
        return parser.parse_args(arguments)
    except (UserError, argparse.ArgumentError) as error:
        raise UserError(_sentence(str(error))) from None


def _parse_file(parser: _Parser, path: Path) -> jsonargparse.Namespace:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path} cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    tables.pop(PROVENANCE, None)
    given = dict(_leaves(tables))
    known = [key for key, _ in _leaves(dataclasses.asdict(Config()))]
    for key in given:
        if key not in known:
            raise UserError(f"{path}: unknown key {key}{_suggestion(key, known)}")
    try:
        parsed = parser.parse_object(tables)
    except (UserError, argparse.ArgumentError) as error:
        raise UserError(f"{path}: {_sentence(str(error))}") from None
    for key, value in given.items():
        # The parser reads "5" as 5, as it must for flags; in a file that has types it is a mistake.
        if isinstance(value, str) and not isinstance(parsed[key], str):
            right = f"{type(parsed[key]).__name__}, without quotes"
            raise UserError(f"{path}: {key} is {value!r}, but must be {right}")
    return parsed


def _instantiate(parser: _Parser, values: jsonargparse.Namespace) -> Config:
    ready = parser.instantiate(values)
    return Config(**{section.name: ready[section.name] for section in dataclasses.fields(Config)})


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the keys"


def _sentence(message: str) -> str:
    """The parser's message as one sentence of ours: key, value, what would be right."""
    text = " ".join(message.split())
    wrong = re.match(r'Parser key "([^"]+)": (.*?)(?:Got|Given) value: (.*)$', text)
    if wrong:
        key, expected, value = wrong.groups()
        choices = [f"one of {choice}" for choice in re.findall(r"Literal\[([^\]]*)\]", expected)]
        types = [kind for kind in re.findall(r"<class '([^']+)'>", expected) if kind != "NoneType"]
        right = " or ".join(dict.fromkeys(choices or types)) or expected.strip(" .")
        return f"{key} is {value}, but must be {right}"
    unknown = re.match(r"[Uu]nrecognized arguments: (\S+)", text)
    if unknown and unknown.group(1).startswith("--"):
        known = [key for key, _ in _leaves(dataclasses.asdict(Config()))]
        flag = unknown.group(1).split("=")[0].removeprefix("--")
        return f"unknown flag --{flag}{_suggestion(flag, known)}"
    return text
