"""Typed parsing of configurations with jsonargparse, and the wording of its refusals.

The sections of `Config` define keys, types and help. This module knows no command, and it imports
neither MPI nor torch, so that mistakes are reported before slow imports.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NoReturn

import jsonargparse

from fedgan_mpi.config.experiment import Config
from fedgan_mpi.config.options import OPTIONS
from fedgan_mpi.config.require import require_representable
from fedgan_mpi.errors import UserError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

SECTIONS = {
    section.name: type(getattr(Config(), section.name)) for section in dataclasses.fields(Config)
}
"""Section name -> its dataclass."""

_OPTION_TABLES = frozenset(OPTIONS.values())
# jsonargparse's names of types -> words for users
_TYPE_NAMES = {"tuple": "a list, such as [0.5, 0.9]", "NoneType": "null"}


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser that raises UserError instead of ending the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(message) from ex


def add_sections(parser: Parser) -> None:
    """Add every key of `Config` to a parser, named `section.key`."""
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)


def parse_tables(tables: dict[str, Any]) -> dict[str, Any]:
    """Return key -> typed value for nested tables; missing keys take their default.

    Raises UserError for an unknown key or a value of the wrong type.
    """
    given = flatten(tables)
    for key in given:
        if key not in DEFAULTS:
            raise UserError(f"unknown key {key}{suggest_key(key)}")
        require_representable(key, given[key])
    try:
        parsed = flatten(_section_parser().parse_object(tables).as_dict())
    except (UserError, argparse.ArgumentError) as error:
        raise UserError(describe_refusal(str(error))) from None
    for key, value in given.items():
        # jsonargparse reads "5" as 5. Flags need that; a quoted number in a TOML file is a mistake.
        if isinstance(value, str) and not isinstance(parsed[key], str | None):
            right = f"{type(parsed[key]).__name__}, without quotes"
            raise UserError(f"{key} is {value!r}, but must be {right}")
    return parsed


def make_config(values: dict[str, Any]) -> Config:
    """Build the configuration from key -> typed value. Raises UserError for impossible values."""
    for key, value in values.items():
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:  # from bytes on the command line
            raise UserError(f"{key} is {value!r}, but must be UTF-8 text") from None
        require_representable(key, value)
    sections = {
        name: section(
            **{field.name: values[f"{name}.{field.name}"] for field in dataclasses.fields(section)}
        )
        for name, section in SECTIONS.items()
    }
    return Config(**sections)


def flatten(tables: dict[str, Any]) -> dict[str, Any]:
    """Return nested tables as one dictionary with dotted keys."""
    return dict(_leaves(tables))


def suggest_key(key: str) -> str:
    """Return the end of a refusal of an unknown key: the most similar key, or where to look."""
    near = difflib.get_close_matches(key, DEFAULTS, n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists the keys"


def describe_refusal(message: str) -> str:
    """Return jsonargparse's message as one sentence with key, value and valid values."""
    text = " ".join(message.split())
    wrong = re.match(
        r'Parser key "([^"]+)": (.*?)(?: Given value type: .*?)?(?:Got|Given) value: (.*)$', text
    )
    if wrong:
        key, expected, value = wrong.groups()
        choices = [f"one of {choice}" for choice in re.findall(r"Literal\[([^\]]*)\]", expected)]
        types = [_TYPE_NAMES.get(name, name) for name in re.findall(r"<class '(\w+)'>", expected)]
        right = " or ".join(dict.fromkeys(choices or types))
        if not right:
            right = expected.strip(" .").replace("Expected a tuple with", "a list of")
        return f"{key} is {value}, but must be {right}"
    unknown = re.match(r"[Uu]nrecognized arguments: (\S+)", text)
    if unknown and unknown.group(1).startswith("--"):
        flag = unknown.group(1).split("=")[0].removeprefix("--")
        return f"unknown flag --{flag}{suggest_key(flag)}"
    return text


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value and prefix + key not in _OPTION_TABLES:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


DEFAULTS = flatten(dataclasses.asdict(Config()))
"""Key -> default value."""


@cache
def _section_parser() -> Parser:
    parser = Parser()
    add_sections(parser)
    return parser
