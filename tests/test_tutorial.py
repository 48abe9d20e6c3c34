"""The tutorial of own parts, followed by the letter."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fedgan_mpi.testing.jobs import ENVIRONMENT
from fedgan_mpi.testing.runs import stats_lines

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial_parts.md"


@pytest.mark.jobs
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_works_as_written(tmp_path):
    """Only the number of rounds differs, and nothing is installed."""
    for language, block in re.findall(
        r"^```(\w+)\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        if language == "python":
            first, _, code = block.partition("\n")
            with open(tmp_path / first.removeprefix("# "), "a") as file:
                file.write("\n\n" + code)
            continue
        script = block.replace("--training.rounds 100", "--training.rounds 4")
        script = script.replace("pip install pytest\n", "")
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    runs = tmp_path / "runs"
    assert {run.name for run in runs.iterdir()} == {"mine", "twice", "ren", "rows"}
    assert (tmp_path / "mine.png").exists() and (tmp_path / "report" / "index.html").exists()
    rounds = [line for line in stats_lines(runs / "twice") if "d_loss" in line]
    assert len(rounds) == 4 and all(line["movement_of_d"] > 0 for line in rounds)
