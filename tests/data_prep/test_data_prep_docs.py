"""The documentation and the help texts cover every command and option."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from data_prep_helpers import SOURCES

from data_prep.__main__ import main
from data_prep.command_line import parse
from fedgan_mpi.plugins.built_in import BUILT_IN

TEXT = (Path(__file__).parents[2] / "docs" / "howto" / "data.md").read_text(encoding="utf-8")
COMMANDS = [line for line in TEXT.splitlines() if re.match(r"python -m data_prep [a-z]", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command_parses(command):
    assert parse(shlex.split(command)[3:]).command in {*SOURCES, "inspect"}


def test_every_source_and_partition_is_documented():
    assert set(SOURCES) <= {shlex.split(command)[3] for command in COMMANDS}
    assert all(f"| `{name}` |" in TEXT for name in (*SOURCES, *BUILT_IN["partitions"]))


@pytest.mark.parametrize("name", [*SOURCES, "inspect"])
def test_every_option_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    options = re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
    assert name == "inspect" or len(options) > 15
    for option in options:
        start = text.index(f"\n  {option}")
        assert len(text[start:].split("\n  -")[1].split()) > 3
