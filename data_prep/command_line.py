"""The parser of `python -m data_prep`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from data_prep.options import OPTIONS
from data_prep.partitions import Attribute, ByFile, Classes, Dirichlet, Quantity, Shards
from data_prep.plugins import needs_path
from fedgan_mpi import plugins
from fedgan_mpi.config.paths import user_path
from fedgan_mpi.errors import UserError
from fedgan_mpi.plugins.built_in import PARTITION_KEY, SOURCE_KEY


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line. `command` is "inspect" or names a data set.

    Exits with an error message if an option is invalid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Split a data set on disk into one HDF5 shard per device. All cores decode "
        "images, or all ranks of `mpirun -n R python -m data_prep ...`. DATASET and --partition "
        "also take an import string, package.module:Name or file.py:Name.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="DATASET | inspect")
    common = _common_options()
    for plugin in _data_sets(parser, arguments):
        text = plugins.describe(plugin)
        commands.add_parser(plugin.name, parents=[common], help=text, description=text)
    text = "list the contents of a shard directory and verify its checksums"
    inspect = commands.add_parser("inspect", help=text, description=text)
    inspect.add_argument("shards", type=user_path, help="directory of shards")
    text = "plot the class histogram and some images of each device"
    inspect.add_argument("--picture", type=user_path, metavar="PNG", help=text)
    inspect.add_argument("--umask", **OPTIONS["files"]["--umask"])
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        import argcomplete

        argcomplete.autocomplete(parser)
    command = parser.parse_args(_with_negative_ranges(arguments))
    try:
        if command.command != "inspect":
            plugins.find(PARTITION_KEY, command.partition)
            if command.source is None and needs_path(command.command):
                parser.error(
                    f"{command.command} needs --source, the location of its original files"
                )
    except UserError as error:
        parser.error(str(error))
    return command


def _with_negative_ranges(arguments: list[str]) -> list[str]:
    """Join `--range` and its value, which may begin like a flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--range":
            joined[-1] = f"--range={argument}"
        else:
            joined.append(argument)
    return joined


def _data_sets(parser: argparse.ArgumentParser, arguments: list[str]) -> list[plugins.Plugin]:
    """Return the data sets that the first argument may name, one of them an import string."""
    known = plugins.installed(plugins.GROUPS[SOURCE_KEY])
    name = arguments[0] if arguments else "inspect"
    if name.startswith("-") or name in {"inspect", *(plugin.name for plugin in known)}:
        return known
    try:
        return [*known, plugins.find(SOURCE_KEY, name)]
    except UserError as error:
        parser.error(str(error))


def partition_flags(command: argparse.Namespace) -> dict[str, Any]:
    """Return the given options of the partition that have a flag of their own.

    Raises UserError if one of them belongs to another built-in partition.
    """
    name = command.partition
    options = {
        key: value for key in _PARTITION_OPTIONS if (value := getattr(command, key)) is not None
    }
    if not plugins.is_built_in(PARTITION_KEY, name):
        return options
    for key in options:
        owners = _PARTITION_OPTIONS[key]
        if name not in owners:
            flag = "--" + key.replace("_", "-")
            raise UserError(
                f"{flag} belongs to --partition {' or '.join(owners)}, but --partition is {name}; "
                f"remove {flag}"
            )
    return options


_PARTITION_OPTIONS = {
    "alpha": (Dirichlet.name, Quantity.name),
    "min_images": (Dirichlet.name, Quantity.name),
    "classes": (Classes.name,),
    "blocks": (Shards.name,),
    "attributes": (Attribute.name,),
    "map": (ByFile.name,),
    "image_column": (ByFile.name,),
    "device_column": (ByFile.name,),
}
"""Option -> the built-in partitions that accept it. The partitions define the defaults."""


def _common_options() -> argparse.ArgumentParser:
    """Return a parser with the options of every data set."""
    parser = argparse.ArgumentParser(add_help=False)
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for flag, settings in options.items():
            group.add_argument(flag, **settings)
    return parser
