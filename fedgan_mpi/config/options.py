"""Options of plug-ins: the tables `[model.options]`, `[algorithm.options]` and their kind."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jsonargparse

from fedgan_mpi import plugins
from fedgan_mpi.config.require import require
from fedgan_mpi.errors import UserError

T = TypeVar("T")


def check_options(
    key: str,
    name: str,
    options: Mapping[str, Any],
    *,
    given: tuple[str, ...] = (),
    label: Callable[[str], str] | None = None,
    text: bool = False,
) -> dict[str, Any]:
    """Return the options, converted to the types of the plug-in's parameters. Imports its code.

    key, name: The configuration key and value that name the plug-in.
    given: Names of parameters that the program sets.
    label: Names an option in messages. None: as in a TOML file.
    text: Whether strings come from a command line, not from a TOML file.

    Raises UserError for an unknown option, a missing one, or a value of the wrong type.
    """
    label = label or _label(key, name)
    code = plugins.load(key, name)
    if not callable(code):
        if options:
            raise UserError(f"{label(next(iter(options)))} is set, but {name} takes no options")
        return {}
    parameters = inspect.signature(code).parameters
    known = {
        parameter.name: parameter
        for parameter in list(parameters.values())[len(given) :]
        if parameter.kind
        in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    }
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option, value in options.items():
        if option not in known and not takes_any:
            near = difflib.get_close_matches(option, known, n=1)
            right = f"did you mean {near[0]}?" if near else f"{name} takes {_list(known)}"
            raise UserError(f"unknown key {label(option)} = {value!r}; {right}")
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise UserError(f"{label(option)} is missing, but {name} needs it")
    return {
        option: _typed(
            label(option), value, _annotation(code, known[option]) if option in known else Any, text
        )
        for option, value in options.items()
    }


def make_part(key: str, name: str, base: type[T], options: Mapping[str, Any]) -> T:
    """Return the object that a configuration value names, of a subclass of `base`.

    Raises UserError for a name that is none, or that does not take its options.
    """
    return plugins.load_class(key, name, base)(**check_options(key, name, options))


def make_part_unless(
    nothing: type, key: str, name: str, base: type[T], options: Mapping[str, Any]
) -> T | None:
    """Return as `make_part` does; None if the value names `nothing`, which does nothing."""
    if plugins.load(key, name) is nothing:
        check_options(key, name, options)
        return None
    return make_part(key, name, base, options)


def check_named(key: str, name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for an unknown name, or for options of a built-in one. Imports nothing.

    A built-in one has its own configuration keys instead of options.
    """
    if options and plugins.find(key, name).origin == "built in":
        raise UserError(f"{OPTIONS[key]} is {dict(options)}, but must be left out for {name}")
    plugins.find(key, name)


def check_listed(key: str, names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise UserError for a list of names that `check_named` refuses, that repeats a name, or whose
    options are not a table for each. key: one of `SEVERAL`. Imports nothing."""
    require(len(set(names)) == len(names), key, list(names), "a list of different names")
    for name in names:
        plugins.find(key, name)
    for name, table in options.items():
        where = f"{OPTIONS[key]}.{name}"
        require(name in names, where, table, f"left out, because {name} is not in {key}")
        require(isinstance(table, dict), where, table, "a table of options")
        check_named(key, name, table)


def _label(key: str, name: str) -> Callable[[str], str]:
    section = OPTIONS[key] + (f".{name}" if key in SEVERAL else "")
    return (section + ".{}").format


def _annotation(code: Any, parameter: inspect.Parameter) -> Any:
    """Return a parameter's annotation; `Any` if it names what exists for type checkers only."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    function = inspect.unwrap(vars(code).get("__init__", code) if isinstance(code, type) else code)
    try:
        return eval(parameter.annotation, getattr(function, "__globals__", {}))
    except Exception:
        return Any


def _typed(key: str, value: Any, annotation: Any, text: bool) -> Any:
    text = text and isinstance(value, str)
    if annotation in (inspect.Parameter.empty, Any):
        return _literal(value) if text else value
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    is_number_in_quotes = isinstance(value, str) and annotation in (int, float, bool)
    try:
        if text:
            return parser.parse_args([f"--value={value}"]).value
        if is_number_in_quotes:
            raise argparse.ArgumentError(None, "")
        return parser.parse_object({"value": value}).value
    except (argparse.ArgumentError, TypeError, ValueError, OverflowError):
        right = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
        raise UserError(f"{key} is {value!r}, but must be {right or annotation}") from None


def _literal(text: str) -> Any:
    """Return the JSON value of a text, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "no options"


OPTIONS = {
    "algorithm.name": "algorithm.options",
    "model.architecture": "model.options",
    "training.loss": "training.loss_options",
    "training.optimizer": "training.optimizer_options",
    "training.augment": "training.augment_options",
    "participation.policy": "participation.options",
    "aggregation.rule": "aggregation.options",
    "aggregation.server_optimizer": "aggregation.server_options",
    "aggregation.compression": "aggregation.compression_options",
    "aggregation.detector": "aggregation.detector_options",
    "evaluation.extractor": "evaluation.extractor_options",
    "evaluation.metrics": "evaluation.metric_options",
}
"""Key that names code -> the table of its options."""
SEVERAL = ("training.augment", "evaluation.metrics", "record.trackers")
"""Keys that list several names; the table of options has a table for each."""
