"""Parses the flags of `train`: a TOML file, `--section.key` overrides, `--resume` and `--dry-run`.

Also holds the functions that the parsers of all commands share. Keys and their types belong to
`config`. Imports neither MPI nor torch, so that mistakes are reported before slow imports.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse

from fedgan_mpi import plugins
from fedgan_mpi.cli.completion import complete_commands, complete_values, is_completing
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import read_values, resumed_config
from fedgan_mpi.config.parsing import (
    DEFAULTS,
    Parser,
    add_sections,
    describe_refusal,
    flatten,
    make_config,
)
from fedgan_mpi.config.paths import user_path
from fedgan_mpi.config.require import MAX_NUMBER
from fedgan_mpi.errors import UserError
from fedgan_mpi.schema import shorten

MAX_SEED = 2**63 - 1
MAX_SECONDS = 86_400
COMMANDS = """commands:
  train [FILE.toml] [flags]   train a GAN; the default command
  train --resume RUN          continue from the newest checkpoint of a run directory
  evaluate RUN [flags]        score the checkpoints and generators of a run, on 1 or more ranks
  memorization RUN            compare generated images with their nearest training images
  score A B [flags]           score two folders, shards or generators against each other
  compare RUN RUN …           table, curves and HTML page of several runs (without MPI)
  watch RUN                   follow a running job (without MPI)
  sample RUN --count 64       draw images from a trained generator (without MPI)
  export RUN --format onnx    convert a generator for other programs (without MPI)
  plugins                       list algorithms, networks and other parts by name (without MPI)
  jobs --devices 32 --gpus-per-node 4 --time 04:00:00   print a SLURM script (without MPI)
  Each command has its own --help.

examples:
  mpirun -n 9 python -m fedgan_mpi                       the embedded digits, 8 devices
  mpirun -n 9 python -m fedgan_mpi train run.toml --training.rounds 500
"""
AUTO = "auto"
"""The value of --resume that finds the run by its name."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """The command `train`."""

    config: Config
    resume: Path | None
    """Run directory to continue. None: start a new run."""
    dry_run: bool
    again: bool = False
    """Whether a run directory of this name without checkpoints may be renamed out of the way."""


def wants_help(arguments: list[str]) -> bool:
    """Return whether the arguments ask for help."""
    return any(argument in {"-h", "--help"} for argument in arguments)


def allow_named(arguments: list[str]) -> None:
    """Permit the import strings that flags on the command line give."""
    for key in plugins.KEYS:
        for n, argument in enumerate(arguments):
            if argument == f"--{key}" and n + 1 < len(arguments):
                plugins.allow(_split(arguments[n + 1]))
            elif argument.startswith(f"--{key}="):
                plugins.allow(_split(argument.partition("=")[2]))


def _split(value: str) -> list[str]:
    """Return the names in a name or in a list of names."""
    return re.split(r"[\s,\[\]\"']+", value)


def parse_train(arguments: list[str]) -> Train:
    """Parse the arguments after `train`. Raises UserError, and SystemExit after printing help."""
    allow_named(arguments)
    flags = parse_flags(_train_parser(DEFAULTS), arguments)
    if flags.file and flags.resume in (
        None,
        AUTO,
    ):  # the user's own file, not one of a run directory
        values = read_values(user_path(flags.file))
        plugins.allow(plugins.named_in(values))
    if flags.resume == AUTO:
        return _parse_resume_auto(flags, arguments)
    if flags.file and flags.resume:
        raise UserError(
            f"{flags.file} and --resume {flags.resume} both name an experiment; give one"
        )
    if flags.resume:
        run = user_path(flags.resume)
        config = _parse_config(arguments, run / "config.toml")
        return Train(config=resumed_config(run, config), resume=run, dry_run=flags.dry_run)
    file = user_path(flags.file) if flags.file else None
    return Train(config=_parse_config(arguments, file), resume=None, dry_run=flags.dry_run)


def _parse_resume_auto(flags: jsonargparse.Namespace, arguments: list[str]) -> Train:
    """Resume the run named run.name if it has a checkpoint, or start it."""
    config = _parse_config(arguments, user_path(flags.file) if flags.file else None)
    if config.run.name is None:
        raise UserError("--resume auto needs run.name, the name of the run to start or continue")
    run = Path(config.run.directory) / config.run.name
    if not any((run / "checkpoints").glob("round_*")):
        return Train(config=config, resume=None, dry_run=flags.dry_run, again=True)
    return Train(config=resumed_config(run, config), resume=run, dry_run=flags.dry_run)


def _parse_config(arguments: list[str], file: Path | None) -> Config:
    """Return the configuration of a TOML file with the flags applied over it."""
    values = DEFAULTS if file is None else read_values(file)
    parsed = flatten(parse_flags(_train_parser(values), arguments).as_dict())
    return make_config(parsed)


def parse_flags(parser: Parser, arguments: list[str]) -> jsonargparse.Namespace:
    """Parse arguments. Raises UserError with one sentence, and SystemExit after printing help."""
    try:
        if is_completing():
            complete_values(parser)
        return parser.parse_args(arguments)
    except (UserError, argparse.ArgumentError) as error:
        raise UserError(describe_refusal(str(error))) from None
    except OverflowError:  # jsonargparse cannot convert an integer of 309 digits to a float
        flag = re.search(r"--([\w.]+)[= ]\S*\d{300}", " ".join(arguments))
        key = flag[1] if flag else "a flag"
        raise UserError(f"{key} is too large, but must be at most {MAX_NUMBER:g}") from None


def optional_path(text: str | None) -> Path | None:
    """Return a path, or None for None."""
    return None if text is None else user_path(text)


def check_range(flag: str, value: float, least: float, most: float) -> None:
    """Raise UserError naming the flag if its value is not in a range, or NaN."""
    if not least <= value <= most:
        raise UserError(f"{flag} is {shorten(value)}, but must be from {least} to {most}")


def add_architecture(parser: Parser) -> None:
    """Add the flag that names the networks of a run whose code is outside of the program."""
    parser.add_argument(
        "--model.architecture",
        type=str,
        default=None,
        metavar="FILE.py:NAME",
        help="import string of the run's networks, if they are neither built in nor installed; "
        "their code runs only if it is named here",
    )


def add_extractor(parser: Parser) -> None:
    """Add the flag that names the feature extractor of a run."""
    parser.add_argument(
        "--evaluation.extractor",
        type=str,
        default=None,
        metavar="NAME",
        help="feature extractor, as evaluation.extractor; if omitted, as in the run",
    )


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows types and defaults, and keeps the line breaks of the list of commands."""


def new_parser(usage: str, description: str) -> Parser:
    """Return a parser for `python -m fedgan_mpi usage`. It raises UserError for mistakes."""
    return Parser(
        usage=f"python -m fedgan_mpi {usage}",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def _train_parser(defaults: dict[str, Any]) -> Parser:
    """Return the parser of `train` with these defaults: key -> value."""
    parser = _build_train_parser()
    parser.set_defaults(defaults)
    return parser


@cache
def _build_train_parser() -> Parser:
    parser = new_parser(
        "[train] [FILE.toml] [--section.key VALUE …]",
        "Train a GAN over MPI. Rank 0 is the server; the other ranks host the devices.",
    )
    parser.epilog = COMMANDS
    add_sections(parser)
    file = parser.add_argument(
        "file", nargs="?", metavar="FILE.toml", help="configuration; flags override its values"
    )
    listed = COMMANDS.partition("\n\n")[0].splitlines()[1:]
    complete_commands(file, [line.split()[0] for line in listed if line[2].islower()])
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="continue a run directory; auto: continue the run named run.name, or start it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, parameter counts and bytes per round, then exit",
    )
    return parser
