"""Reads run directories for tests: statistics, the generator, differences between two runs.

Knows the names of files. Knows nothing about the jobs that wrote them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any


def stats_lines(run: Path) -> list[dict[str, Any]]:
    """Return all lines of `stats.jsonl` in their order."""
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def stats_without_seconds(run: Path) -> list[dict[str, Any]]:
    """Return all lines of `stats.jsonl` without measured seconds and memory."""
    return [
        {key: value for key, value in line.items() if not key.startswith(("seconds", "peak_"))}
        for line in stats_lines(run)
    ]


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Return (round, D's loss, G's loss) of each round."""
    return [
        (line["round"], line["d_loss"], line["g_loss"])
        for line in stats_lines(run)
        if "d_loss" in line
    ]


def generator_bytes(run: Path) -> bytes:
    """Return the content of `generator.safetensors`."""
    return (run / "generator.safetensors").read_bytes()


def differences(run: Path, other: Path) -> list[str]:
    """Return the names of the files in which two runs differ. Empty if training was identical.

    Compares `stats.jsonl` without measured numbers, the generator and the image grids.
    """
    grids, other_grids = (
        {path.name: path.read_bytes() for path in (directory / "samples").iterdir()}
        for directory in (run, other)
    )
    equal = {
        "stats.jsonl": stats_without_seconds(run) == stats_without_seconds(other),
        "generator.safetensors": generator_bytes(run) == generator_bytes(other),
        "samples": grids == other_grids,
    }
    return [name for name, is_equal in equal.items() if not is_equal]


def completed_rounds(run: Path) -> list[dict[str, Any]]:
    """Return the lines of rounds in `stats.jsonl`, which a job may be writing."""
    path = run / "stats.jsonl"
    complete_lines, _, _ = (path.read_text() if path.exists() else "").rpartition("\n")
    return [json.loads(line) for line in complete_lines.splitlines() if '"participants"' in line]


def wait_for_round(run: Path, round: int, job: subprocess.Popen[Any], timeout: float = 150) -> None:
    """Return when `stats.jsonl` has that round.

    Raises RuntimeError if the job ends first, and TimeoutError after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    path = run / "stats.jsonl"
    while not (path.exists() and f'"round": {round},' in path.read_text()):
        if job.poll() is not None:
            raise RuntimeError(f"the job ended with {job.returncode} before round {round} of {run}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run} did not reach round {round} within {timeout:g} s")
        time.sleep(0.01)


def copy_without_last_checkpoint(run: Path, copy: Path) -> None:
    """Copy a finished run to `copy`, in the state of a job killed before its last checkpoint.

    The configuration of the copy has the new run name.
    """
    shutil.copytree(run, copy)
    shutil.rmtree(max((copy / "checkpoints").glob("round_*")))
    config = copy / "config.toml"
    text = config.read_text()
    config.write_text(text.replace(f'name = "{run.name}"', f'name = "{copy.name}"'))
