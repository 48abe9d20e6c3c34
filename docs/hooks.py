"""MkDocs hooks: write the configuration and command-line reference from the program itself.

A page asks for generated text with a comment on a separate line: `<!-- options -->` becomes every
option of `fedgan_mpi.config`, and `<!-- help: COMMAND -->` the help of `python -m COMMAND`. Every
page is searched for options and files that do not exist; `mkdocs build --strict` refuses them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import os
import re
import subprocess
import sys
import textwrap
import typing
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fedgan_mpi.config import Config

log = logging.getLogger("mkdocs.plugins.options")

_ROOT = Path(__file__).parents[1]
_SECTIONS = [section.name for section in dataclasses.fields(Config)]
_FILES = "gif|json|jsonl|md|png|py|toml"
_OPTION = rf"(?:{'|'.join(_SECTIONS)})\.(?!(?:{_FILES})\b)[a-z]\w*"
_PATH = re.compile(r"`((?:fedgan_mpi|data_prep|benchmarks|jobs|tests|docs)/[\w./]*\w/?)`")
_MENTION = re.compile(rf"--({_OPTION})|`({_OPTION})(?: [^`]*)?`")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in generated text, and warn about options and files that do not exist."""
    for flag, quoted in _MENTION.findall(markdown):
        name = flag or quoted
        if name not in _option_names():
            log.warning("%s names the option %s, which does not exist", page.file.src_uri, name)
    for path in _PATH.findall(markdown):
        if not (_ROOT / path).exists():
            log.warning("%s names the file %s, which does not exist", page.file.src_uri, path)
    markdown = markdown.replace("<!-- options -->", _options())
    return re.sub(r"^<!-- help: (.+) -->$", lambda m: _help(m[1]), markdown, flags=re.MULTILINE)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Keep single options out of the page's table of contents."""
    if page.file.src_uri == "reference/configuration.md":
        for title in page.toc:
            for section in title.children:
                section.children = []
    return html


@cache
def _option_names() -> frozenset[str]:
    defaults = Config()
    return frozenset(
        f"{section}.{option.name}"
        for section in _SECTIONS
        for option in dataclasses.fields(getattr(defaults, section))
    )


@cache
def _options() -> str:
    defaults = Config()
    return "\n\n".join(_section(name, type(getattr(defaults, name))) for name in _SECTIONS)


def _section(name: str, section: type) -> str:
    types, texts = typing.get_type_hints(section), _attribute_docstrings(section)
    parts = [f"## {name} {{#{name}}}", inspect.getdoc(section) or ""]
    for option in dataclasses.fields(section):
        key = f"{name}.{option.name}"
        parts += [
            f"### `{key}` {{#{key}}}",
            _describe(types[option.name]) + _default(types[option.name], option.default),
            _escape(texts[option.name]),
        ]
    return "\n\n".join(parts)


def _attribute_docstrings(section: type) -> dict[str, str]:
    """Return the string below each annotated attribute, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0].body  # type: ignore[attr-defined]
    return {
        attribute.target.id: " ".join(text.value.value.split())
        for attribute, text in pairwise(body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _describe(annotation: Any) -> str:
    """Return a type as a reader of TOML would write it, without None."""
    choices = [choice for choice in typing.get_args(annotation) if choice is not type(None)]
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{_toml(choice)}`" for choice in choices)
    if origin is tuple:
        return "list of " + _describe(choices[0]).removeprefix("one of ")
    return _describe(choices[0]) if origin is not None else f"`{annotation.__name__}`"


def _default(annotation: Any, value: Any) -> str:
    if value is None:
        return " · optional"
    may_be_none = " or none" if type(None) in typing.get_args(annotation) else ""
    return f"{may_be_none} · default `{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def _escape(text: str) -> str:
    return re.sub(r"([*_<>])", r"\\\1", text)


@cache
def _help(command: str) -> str:
    """Return `python -m COMMAND --help` as a code block."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--help"],
        cwd=_ROOT,
        env={**os.environ, "COLUMNS": "78"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        log.warning("python -m %s --help failed: %s", command, done.stderr.strip())
    return f"```text\n{done.stdout.rstrip()}\n```"
