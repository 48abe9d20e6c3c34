"""Asserts that the program refuses a damaged run in one sentence and changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from fedgan_mpi.__main__ import main


class Attack:
    """An object whose pickle creates a file in the working directory if it is loaded."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def refusal(capsys, *arguments: str) -> str:
    """Assert that the command fails with one line on standard error, and return that line."""
    assert main([*arguments]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    return message


def refused_resume(run: Path, outside: Path, capsys) -> str:
    """Assert that a resume is refused, and return its message.

    The run's statistics and configuration, the working directory and the directory `outside` must
    stay unchanged. A pickle that is executed would create a file.
    """
    unchanged = run / "stats.jsonl", run / "config.toml"
    before = contents(outside), [content(path) for path in unchanged]
    message = refusal(capsys, "--resume", str(run), "--training.rounds", "3")
    assert (contents(outside), [content(path) for path in unchanged]) == before
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]
    return message


def contents(directory: Path) -> dict[str, bytes | None]:
    """Return the content of each path below a directory. Pipes are omitted."""
    return {str(path): content(path) for path in sorted(directory.rglob("*")) if not path.is_fifo()}


def content(path: Path) -> bytes | None:
    """Return the content of a file, or None for anything else."""
    return path.read_bytes() if path.is_file() else None
