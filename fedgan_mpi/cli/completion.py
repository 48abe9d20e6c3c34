"""Completion in the shell, by argcomplete: chooses the parser that completes the words so far.

argcomplete starts the program with the words in the environment, and jsonargparse answers it.
"""

from __future__ import annotations

import os
from argparse import Action
from collections.abc import Container, Iterable
from typing import Any, Literal, get_args, get_origin

from fedgan_mpi import plugins
from fedgan_mpi.config.parsing import Parser


def is_completing() -> bool:
    """Return whether the shell asks for completions."""
    return "_ARGCOMPLETE" in os.environ


def typed_command(commands: Container[str]) -> list[str]:
    """Return the command that has been typed, as arguments; empty if there is none yet."""
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    start = int(os.environ["_ARGCOMPLETE"])  # words before the arguments, such as python FILE
    words = line.split()[start:]
    is_complete = len(words) > 1 or line.endswith(" ")
    if not (words and is_complete and words[0] in commands):
        return []
    os.environ["_ARGCOMPLETE"] = str(start + 1)  # the command's parser does not know its name
    return words[:1]


def complete_values(parser: Parser) -> None:
    """Complete the values of flags: built-in and installed names of code, words to choose from.

    The shell completes other values by files.
    """
    for action in parser._actions:
        if action.dest in plugins.KEYS:
            names = [plugin.name for plugin in plugins.installed(plugins.KEYS[action.dest])]
            _set_completer(action, names)
        elif hasattr(action, "_typehint"):  # jsonargparse's own completer knows no Literal
            _set_completer(action, _choices(action._typehint))


def complete_commands(action: Action, commands: Iterable[str]) -> None:
    """Complete an argument by commands and files."""
    _set_completer(action, commands, files=True)


def _choices(annotation: Any) -> list[str]:
    """Return the words of a bool or a Literal, also inside of a union."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _choices(part)]


def _set_completer(action: Action, words: Iterable[str], files: bool = False) -> None:
    def complete(prefix: str, **_: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter

        found = [word for word in words if word.startswith(prefix)]
        return [*found, *FilesCompleter()(prefix)] if files else found

    action.completer = complete  # type: ignore[attr-defined]
