"""Ranks that get SIGKILL in a chosen phase. A short one of benchmarks/kills.py, which kills all
algorithms 20 times."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from phases import kill_in, label, phases_seen, start
from test_jobs_survival import assert_same, wait_for_round
from whole_jobs import forked_python

pytestmark = [pytest.mark.jobs, pytest.mark.timeout(600)]
JOB = (
    "--run.name", "a", "--model.width", "4", "--model.nz", "8", "--training.rounds", "100",
    "--evaluation.every", "20", "--evaluation.samples", "64", "--checkpoint.every", "3",
    "--algorithm.name", "mdgan",
)  # fmt: skip
HOSTED = (
    *JOB, "--data.devices", "3", "--participation.policy", "random", "--participation.count", "2",
)  # fmt: skip
"""One rank hosts two devices, and each writes its own part of a checkpoint."""
ALONE = (*JOB, "--data.devices", "2")
"""A device a rank: where they share cores, the server writes all parts."""
KILLS = {
    HOSTED: [
        ("compute", 1), ("score", 2), ("write", 1), ("write", 0), ("seal", 0), ("gather", 0),
        ("sum", 2),
    ],
    ALONE: [("sum", 1), ("write", 0), ("seal", 0), ("compute", 2)],
}  # fmt: skip
"""Phase and rank; 0 is the server."""


@pytest.fixture(scope="module", params=KILLS, ids=["hosted", "alone"])
def job(request) -> tuple[str, ...]:
    return request.param


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    assert begin(cwd, *job).wait(200) == 0, (cwd / "log.txt").read_text()
    return cwd


def begin(cwd: Path, *flags: str) -> subprocess.Popen[bytes]:
    return start(cwd, *flags, python=forked_python())


def test_a_board_tells_the_phases_of_a_job(whole):
    """Otherwise kills would not fall where they say."""
    seen = set(phases_seen(whole))
    assert seen >= {"compute", "score", "write", "seal", "scatter", "gather", "permute", "sum"}
    assert "average" not in seen  # mdgan has none
    assert label(["start", "agree"]) == "start"
    assert label(["start", "rounds", "copy", "agree"]) == "agree"
    assert label(["start", "rounds", "score", "sum"]) == "score"
    assert label(["start", "rounds", "compute", "write"]) == "write"


def test_a_job_that_is_killed_in_every_phase_goes_on_bitwise(job, whole, tmp_path):
    here = tmp_path / "runs" / "a"
    fell = []
    for number, (phase, rank) in enumerate(KILLS[job], start=1):
        running = begin(tmp_path, *job, "--resume=auto")
        wait_for_round(here, 10 * number, running)
        kill = kill_in(phase, running, tmp_path, rank, patience=100)
        assert kill is not None, (tmp_path / "log.txt").read_text()
        fell.append((kill.phase, kill.rank))
        assert kill.status not in (0, None), kill
        assert kill.seconds < 10 and kill.left == 0, kill
    assert fell == KILLS[job]
    assert [path.name for path in here.parent.iterdir()] == ["a"]  # none began anew
    done = begin(tmp_path, *job, "--resume=auto")
    assert done.wait(200) == 0, (tmp_path / "log.txt").read_text()
    assert_same(whole / "runs" / "a", here)
