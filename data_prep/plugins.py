"""Makes the source and the partition that a command line names: built-in, installed, or a file.

All three go through `fedgan_mpi.plugins`. An error of a user's own code becomes one sentence that
names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.checks import find_problem
from data_prep.partitions import Partition
from data_prep.sources import Source
from data_prep.sources.base import reason_of
from fedgan_mpi import plugins
from fedgan_mpi.errors import UserError
from fedgan_mpi.plugins.built_in import PARTITION_KEY, SOURCE_KEY


def load(key: str, name: str) -> Callable[..., Any]:
    """Import the class or function that the user has named. Raises UserError.

    key: SOURCE_KEY or PARTITION_KEY.
    """
    plugins.allow([name])
    code = plugins.load(key, name)
    base: type = Source if key == SOURCE_KEY else Partition
    if isinstance(code, type):
        return plugins.load_class(key, name, base)
    if not callable(code):
        raise UserError(
            f"{key} is {name!r}, but that must be a subclass of {base.__module__}.{base.__name__}, "
            "or a function that returns an object of one"
        )
    return code


def needs_path(name: str) -> bool:
    """Return whether the source that the user has named cannot be made without a path."""
    parameters = list(inspect.signature(load(SOURCE_KEY, name)).parameters.values())
    return bool(parameters) and parameters[0].default is inspect.Parameter.empty


def make_source(name: str, path: Path | None, options: Mapping[str, str]) -> Source:
    """Read everything but pixels of the data set that the user has named.

    options: own options as text. Raises UserError if they do not suit its signature, or if what the
    source offers contradicts itself.
    """
    code = load(SOURCE_KEY, name)
    keywords = _checked(SOURCE_KEY, name, options, "--source-option {}".format, given=("path",))
    with name_in_errors(SOURCE_KEY, name):
        source: Source = _made(SOURCE_KEY, name, Source, code(path, **keywords))
        if (problem := find_problem(source)) is not None:
            raise UserError(f"{SOURCE_KEY} is {name!r}, but {problem}")
    return source


def make_partition(name: str, flags: Mapping[str, Any], options: Mapping[str, str]) -> Partition:
    """Make the partition that the user has named.

    flags: values of the options that have a flag of their own. options: the others, as text.
    Raises UserError if they do not suit its signature.
    """
    code = load(PARTITION_KEY, name)
    keywords = _checked(PARTITION_KEY, name, {**flags, **options}, _label(flags))
    with name_in_errors(PARTITION_KEY, name):
        partition: Partition = _made(PARTITION_KEY, name, Partition, code(**keywords))
    object.__setattr__(partition, "name", name)  # as the user knows it; partitions may be frozen
    return partition


def _checked(
    key: str,
    name: str,
    options: Mapping[str, Any],
    label: Callable[[str], str],
    given: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """Return the options with the types of the signature. Raises UserError."""
    if plugins.is_built_in(key, name) and not options:
        return options
    from fedgan_mpi.config.options import check_options  # slow to import

    return check_options(key, name, options, given=given, label=label, text=True)


def _label(flags: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a function that names an option as on the command line."""

    def label(option: str) -> str:
        if option in flags:
            return "--" + option.replace("_", "-")
        return f"--partition-option {option}"

    return label


@contextmanager
def name_in_errors(key: str | None = None, name: str = "") -> Iterator[None]:
    """Convert errors of a user's own code to a UserError that names the code and the line.

    key, name: the code that the block calls, if it calls only one. Errors of built-in code are bugs
    of this program and pass.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        where = plugins.blame(error)
        if where is None and key is not None and not plugins.is_built_in(key, name):
            where = f"This was raised for {key} {name!r}."
        if where is None:
            raise
        raise UserError(f"{describe_error(error)}. {where}") from error


def describe_error(error: BaseException) -> str:
    """Return an error's type and message in one line."""
    kind, problem = type(error).__name__, reason_of(error)
    return kind if problem == kind else f"{kind}: {problem}"


def _made(key: str, name: str, base: type, value: Any) -> Any:
    if not isinstance(value, base):
        raise UserError(
            f"{key} is {name!r}, but it returns a {type(value).__name__}, not a "
            f"{base.__module__}.{base.__name__}"
        )
    return value
