"""Ranks killed in a chosen phase. A short form of benchmarks/kills.py, which kills every algorithm
20 times."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from interrupted_jobs import assert_equal_runs

from fedgan_mpi.testing.jobs import SMALL_NETWORKS, forked_python
from fedgan_mpi.testing.kills import kill_in_phase, phases_of_job, start_recorded_job
from fedgan_mpi.testing.phases import current_phase
from fedgan_mpi.testing.runs import wait_for_round

pytestmark = [pytest.mark.jobs, pytest.mark.slow, pytest.mark.timeout(600)]
JOB = (
    "--run.name", "a", *SMALL_NETWORKS, "--training.rounds", "100",
    "--evaluation.every", "20", "--evaluation.samples", "64", "--checkpoint.every", "3",
    "--algorithm.name", "mdgan",
)  # fmt: skip
HOSTED = (
    *JOB, "--data.devices", "3", "--participation.policy", "random", "--participation.count", "2",
)  # fmt: skip
"""One rank hosts two devices."""
ONE_EACH = (*JOB, "--data.devices", "2")
"""Each device rank has one device."""
KILLS = {
    HOSTED: [
        ("compute", 1), ("score", 2), ("write", 1), ("write", 0), ("seal", 0), ("gather", 0),
        ("sum", 2),
    ],
    ONE_EACH: [("sum", 1), ("write", 0), ("seal", 0), ("compute", 2)],
}  # fmt: skip
"""Phase and rank of each kill. Rank 0 is the server."""


@pytest.fixture(scope="module", params=KILLS, ids=["hosted", "one_each"])
def job(request) -> tuple[str, ...]:
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(job, tmp_path_factory) -> Path:
    """The working directory of a job without kills."""
    cwd = tmp_path_factory.mktemp("uninterrupted")
    assert start(cwd, *job).wait(200) == 0, (cwd / "log.txt").read_text()
    return cwd


def start(cwd: Path, *flags: str) -> subprocess.Popen[bytes]:
    return start_recorded_job(cwd, *flags, python=forked_python())


def test_boards_record_the_phases_of_a_job(uninterrupted):
    seen = set(phases_of_job(uninterrupted))
    assert seen >= {"compute", "score", "write", "seal", "scatter", "gather", "permute", "sum"}
    assert "reduce" not in seen  # a verb that mdgan does not use
    assert current_phase(["start", "agree"]) == "start"
    assert current_phase(["rounds", "copy", "agree"]) == "agree"
    assert current_phase(["rounds", "score", "sum"]) == "score"
    assert current_phase(["rounds", "compute", "write"]) == "write"


def test_a_run_killed_in_every_phase_resumes_bitwise(job, uninterrupted, tmp_path):
    run = tmp_path / "runs" / "a"
    kills = []
    for number, (phase, rank) in enumerate(KILLS[job], start=1):
        running = start(tmp_path, *job, "--resume=auto")
        wait_for_round(run, 10 * number, running)
        kill = kill_in_phase(phase, running, tmp_path, rank, timeout=100)
        assert kill is not None, (tmp_path / "log.txt").read_text()
        kills.append((kill.phase, kill.rank))
        assert kill.status not in (0, None), kill
        assert kill.seconds < 10 and kill.survivors == 0, kill
    assert kills == KILLS[job]
    assert [path.name for path in run.parent.iterdir()] == ["a"]  # every job resumed the run
    done = start(tmp_path, *job, "--resume=auto")
    assert done.wait(200) == 0, (tmp_path / "log.txt").read_text()
    assert_equal_runs(uninterrupted / "runs" / "a", run)
