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
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse

from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

COMMANDS = """commands:
  train [FILE.toml] [flags]   train a GAN; what runs when no command is named
  train --resume RUN          go on from the newest checkpoint of a run directory
  evaluate RUN [flags]        score all checkpoints and generators of a run, on any number of ranks
  neighbours RUN              look for copies of training images, where they are held
  compare RUN RUN …           table, curves and one HTML page of several runs (no MPI needed)
  watch RUN                   follow a running job (no MPI needed)
  sample RUN --count 64       draw images from a trained generator (no MPI needed)
  export RUN --format onnx    the generator for other programs (no MPI needed)
  jobs --devices 32 --gpus-per-node 4 --time 04:00:00   print a SLURM script (no MPI needed)
  each of these has its own --help

  mpirun -n 9 python -m fedgan_mpi                       the embedded digits, 8 devices
  mpirun -n 9 python -m fedgan_mpi train run.toml --training.rounds 500
"""
PROVENANCE = (
    "provenance"  # the table of a run directory's config.toml that records rather than configures
)


AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Train:
    """`train`: an experiment, begun or gone on with."""

    config: Config
    resume: Path | None
    dry_run: bool
    again: bool = False
    """Whether a run directory of this name that has no checkpoint may be put aside."""


def wants_help(arguments: list[str]) -> bool:
    """Whether only help is asked for, which needs no ranks."""
    return any(argument in {"-h", "--help"} for argument in arguments)


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
    return _instantiate(_parse_file(path))


def read_provenance(run: Path) -> dict[str, Any]:
    """Where and with what a run last ran, by its config.toml. Raises UserError where that is
    damaged."""
    path = run / "config.toml"
    try:
        found = tomllib.loads(read_whole(path).decode())[PROVENANCE]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path} is missing or damaged") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged")
    return found


def parse_train(arguments: list[str]) -> Train:
    """`train`, or what follows it. Raises UserError; prints and raises SystemExit for --help."""
    first = parse_flags(_train_parser(_DEFAULTS), arguments)
    if first.resume == AUTO:
        return _parse_again(first, arguments)
    if first.file and first.resume:
        raise UserError(
            f"{first.file} and --resume {first.resume} both name an experiment; give one"
        )
    if first.resume:
        path = Path(first.resume) / "config.toml"
        config = _with_file(arguments, path)
        check_resumable(config_table(read_config(path)), config_table(config), path)
        return Train(config=config, resume=Path(first.resume), dry_run=first.dry_run)
    file = Path(first.file) if first.file else None
    return Train(config=_with_file(arguments, file), resume=None, dry_run=first.dry_run)


def _parse_again(first: jsonargparse.Namespace, arguments: list[str]) -> Train:
    """`--resume auto`: the same command begins a run, and goes on with it."""
    config = _with_file(arguments, Path(first.file) if first.file else None)
    if config.run.name is None:
        raise UserError("--resume auto needs run.name, by which the run is found again")
    run = Path(config.run.directory) / config.run.name
    if not any((run / "checkpoints").glob("round_*")):
        return Train(config=config, resume=None, dry_run=first.dry_run, again=True)
    path = run / "config.toml"
    check_resumable(config_table(read_config(path)), config_table(config), path)
    return Train(config=config, resume=run, dry_run=first.dry_run)


def _with_file(arguments: list[str], path: Path | None) -> Config:
    """Flags override the file: they are parsed with the file's values as their defaults."""
    from_file = _DEFAULTS if path is None else dict(_leaves(_parse_file(path).as_dict()))
    return _instantiate(parse_flags(_train_parser(from_file), arguments))


def check_resumable(
    before: dict[str, Any], now: dict[str, Any], where: Path, *, renamed: bool = False
) -> None:
    """A resumed run is the same experiment, or a longer one. before, now: of `config_table`;
    renamed: its directory may have got another name since.

    Raises UserError for a key that decides on results, or on what stats.jsonl tells of them.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    for key in sorted(old.keys() | new.keys()):
        were = old.get(key, 0)
        longer = key == "training.rounds" and isinstance(were, int) and new[key] >= were
        moved = renamed and key in ("run.name", "run.directory")
        if old.get(key) == new.get(key) or longer or moved or key.startswith(_MAY_CHANGE):
            continue
        right = f"{old[key]!r}" if key in old else "left out"
        if key == "training.rounds":
            right = f"at least {old.get(key)!r}"
        value = f"is {new[key]!r}" if key in new else "is left out"
        raise UserError(f"{key} {value}, but must be {right} as in {where}")


_MAY_CHANGE = (
    "checkpoint.", "record.", "data.shards", "link.deadline", "link.survive", "training.pin",
)  # fmt: skip
"""What a resumed run may do otherwise without another result."""


class _Help(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help with types and defaults; the list of commands keeps its lines."""


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(message) from ex


def new_parser(usage: str, description: str) -> _Parser:
    """A parser of `python -m fedgan_mpi usage`, which raises UserError for mistakes."""
    usage = f"python -m fedgan_mpi {usage}"
    return _Parser(usage=usage, description=description, formatter_class=_Help, allow_abbrev=False)


def _train_parser(defaults: dict[str, Any]) -> _Parser:
    """The one parser of configurations, with these defaults."""
    parser = _build_parser()
    parser.set_defaults({key: defaults[key] for key in _DEFAULTS})
    return parser


@cache
def _build_parser() -> _Parser:
    parser = new_parser(
        "[train] [FILE.toml] [--section.key VALUE …]",
        "Train a GAN over MPI: one server rank, the others hold the devices.",
    )
    parser.epilog = COMMANDS
    defaults = Config()
    for section in dataclasses.fields(Config):
        parser.add_class_arguments(type(getattr(defaults, section.name)), section.name)
    parser.add_argument("file", nargs="?", metavar="FILE.toml", help="the experiment")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run directory; auto: with that of run.name, or begin it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, sizes and bytes a round; do not train",
    )
    return parser


def parse_flags(parser: _Parser, arguments: list[str]) -> jsonargparse.Namespace:
    """What the arguments say. Raises UserError with one sentence of ours."""
    try:
        return parser.parse_args(arguments)
    except (UserError, argparse.ArgumentError) as error:
        raise UserError(_sentence(str(error))) from None


def _parse_file(path: Path) -> jsonargparse.Namespace:
    try:
        tables = tomllib.loads(read_whole(path).decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path} cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    tables.pop(PROVENANCE, None)
    sections = [section.name for section in dataclasses.fields(Config)]
    # One whose keys are all commented out says nothing.
    tables = {key: value for key, value in tables.items() if value != {} or key not in sections}
    given = dict(_leaves(tables))
    for key in given:
        if key not in _DEFAULTS:
            raise UserError(f"{path}: unknown key {key}{_suggestion(key)}")
    try:
        parsed = _train_parser(_DEFAULTS).parse_object(tables)
    except (UserError, argparse.ArgumentError) as error:
        raise UserError(f"{path}: {_sentence(str(error))}") from None
    for key, value in given.items():
        # The parser reads "5" as 5, as it must for flags; in a file that has types it is a mistake.
        if isinstance(value, str) and not isinstance(parsed[key], str):
            right = f"{type(parsed[key]).__name__}, without quotes"
            raise UserError(f"{path}: {key} is {value!r}, but must be {right}")
    return parsed


def _instantiate(values: jsonargparse.Namespace) -> Config:
    ready = _build_parser().instantiate(values)
    return Config(**{section.name: ready[section.name] for section in dataclasses.fields(Config)})


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


_DEFAULTS = dict(_leaves(dataclasses.asdict(Config())))
"""Each key with its value where nobody says another."""


def _suggestion(key: str) -> str:
    near = difflib.get_close_matches(key, _DEFAULTS, n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the keys"


def _sentence(message: str) -> str:
    """The parser's message as one sentence of ours: key, value, what would be right."""
    text = " ".join(message.split())
    wrong = re.match(r'Parser key "([^"]+)": (.*?)(?:Got|Given) value: (.*)$', text)
    if wrong:
        key, expected, value = wrong.groups()
        choices = [f"one of {choice}" for choice in re.findall(r"Literal\[([^\]]*)\]", expected)]
        types = [kind for kind in re.findall(r"<class '([^']+)'>", expected) if kind != "NoneType"]
        types = ["a list, such as [0.5, 0.9]" if kind == "tuple" else kind for kind in types]
        right = " or ".join(dict.fromkeys(choices or types)) or expected.strip(" .")
        return f"{key} is {value}, but must be {right}"
    unknown = re.match(r"[Uu]nrecognized arguments: (\S+)", text)
    if unknown and unknown.group(1).startswith("--"):
        flag = unknown.group(1).split("=")[0].removeprefix("--")
        return f"unknown flag --{flag}{_suggestion(flag)}"
    return text
