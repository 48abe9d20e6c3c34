"""The scripts in jobs/, unchanged except for site.sh, on a SLURM cluster of two nodes.

The cluster runs on this machine and needs root, see .ci/slurm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.testing.jobs import SMALL
from fedgan_mpi.testing.runs import completed_rounds, stats_lines

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STOPPED = "Stopped by a signal after round"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
ENDLESS = ["--training.rounds", "1000000"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A directory to submit jobs from. The cluster runs until the module ends."""
    directory = tmp_path_factory.mktemp("slurm") / "submit"
    shutil.copytree(ROOT / "jobs", directory / "jobs")
    (directory / "jobs" / "site.sh").write_text(
        f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{ROOT}"\n'
        'LAUNCH="srun --mpi=pmi2 --kill-on-bad-exit=1"\n'
    )
    # munged runs as another user, which has no access to pytest's directories.
    with tempfile.TemporaryDirectory(prefix="slurm-") as cluster:
        subprocess.run([ROOT / ".ci" / "slurm", "up", cluster], check=True, timeout=150)
        os.environ["SLURM_CONF"] = f"{cluster}/slurm.conf"
        yield directory
        del os.environ["SLURM_CONF"]
        subprocess.run([ROOT / ".ci" / "slurm", "down", cluster], check=True, timeout=60)


def submit(directory: Path, *arguments: str) -> str:
    """Submit a job and return its number."""
    command = ["sbatch", "--parsable", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def describe(job: str) -> dict[str, str]:
    """Return the fields of `scontrol show job`."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    return dict(re.findall(r"(\w+)=(\S*)", shown.stdout))


def wait_for_state(job: str, *states: str, seconds: float = 200) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    while (fields := describe(job)).get("JobState") not in states:
        assert time.monotonic() < deadline, fields
        time.sleep(0.2)
    return fields


def wait_for_rounds(job: str, log: Path, run: Path, rounds: int) -> None:
    deadline = time.monotonic() + 200
    while len(completed_rounds(run)) < rounds:
        text = log.read_text() if log.exists() else "no log"
        assert time.monotonic() < deadline, (describe(job), text)
        time.sleep(0.2)


def wait_for_restart(job: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while (fields := describe(job)).get("Restarts", "0") == "0":
        text = log.read_text() if log.exists() else "no log"
        assert fields.get("JobState") not in ("FAILED", "TIMEOUT", "COMPLETED"), text
        assert time.monotonic() < deadline, (fields, text)
        time.sleep(0.2)


def wait_at_reduced_speed(run: str, log: Path, text: str) -> None:
    """Wait until the log contains the text. Slow the job to a tenth of its speed until then.

    Other processes can use the cores, and the job does not reach its last round too early.
    """
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        ranks: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            ranks = rank_processes(run)
        for request, seconds in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.send_signal(request)
            time.sleep(seconds)


def rank_processes(run: str) -> list[psutil.Process]:
    """Return the processes of a run, ordered by rank."""
    ranks = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"fedgan_mpi", run, "train"} <= set(process.info["cmdline"] or [])
        and "srun" not in process.info["cmdline"][0]
    ]
    return sorted(ranks, key=lambda process: int(process.environ()["SLURM_PROCID"]))


def rounds_of(run: Path) -> list[int]:
    return [line["round"] for line in stats_lines(run) if "metric" not in line]


def test_the_tasks_of_a_job_get_the_cores_that_it_asks_for(slurm, monkeypatch):
    """SLURM counts the cores of a step. Some versions of srun read them from the variable only."""
    site = slurm / "cores"
    site.mkdir()
    report = site / "report.sh"
    report.write_text('#!/bin/sh\nscontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID" | grep CPUs\n')
    report.chmod(0o755)
    (site / "site.sh").write_text(f'LAUNCH="srun {report}"\n')
    monkeypatch.setenv("FEDGAN_MPI_JOBS", str(site))
    job = submit(slurm, "--job-name=c", "--ntasks=2", "--cpus-per-task=3", "jobs/train.sbatch")
    ended, text = wait_for_state(job, *ENDED), (slurm / f"c-{job}.log").read_text()
    assert ended["JobState"] == "COMPLETED", text
    assert "CPUs=6 Tasks=2" in text, text


def test_a_preempted_job_is_requeued_and_resumes(slurm):
    flags = [*SMALL, "--data.devices", "3", "--checkpoint.every", "200"]
    job = submit(
        slurm, "--job-name=a", "--nodes=2", "--ntasks=4", "jobs/train.sbatch", "jobs/digits.toml",
        *flags, "--training.rounds", "150",
    )  # fmt: skip
    run, log = slurm / "runs" / "a", slurm / f"a-{job}.log"
    wait_for_rounds(job, log, run, 20)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_at_reduced_speed("a", log, STOPPED)
    ended = wait_for_state(job, *ENDED, seconds=400)
    text = log.read_text()
    assert ended["JobState"] == "COMPLETED", text
    assert ended["Restarts"] == "1"
    assert text.count(STOPPED) == 1
    assert rounds_of(run) == list(range(1, 151))
    assert json.loads((run / "generator.json").read_text())["round"] == 150


def test_a_job_near_its_time_limit_is_requeued_and_resumes(slurm):
    """SLURM may send the signal of the script up to a minute early."""
    flags = [*SMALL, "--data.devices", "2", *ENDLESS]
    job = submit(slurm, "--job-name=t", "--time=4", "--ntasks=3", "jobs/train.sbatch", *flags)
    run, log = slurm / "runs" / "t", slurm / f"t-{job}.log"
    wait_for_rounds(job, log, run, 9)
    wait_at_reduced_speed("t", log, STOPPED)
    wait_for_restart(job, log)
    stopped_after = int(re.findall(rf"{STOPPED} (\d+)", log.read_text())[-1])
    assert "TIME LIMIT" not in log.read_text()
    rounds = stopped_after + 9
    wait_for_rounds(job, log, run, rounds)
    assert rounds_of(run)[:rounds] == list(range(1, rounds + 1))
    subprocess.run(["scancel", job], check=True)
    wait_for_state(job, "CANCELLED")


def test_a_job_at_its_time_limit_writes_a_checkpoint_of_its_last_round(slurm):
    """Without SIGUSR1 SLURM sends SIGTERM to all ranks at the limit, and SIGKILL soon after."""
    flags = [*SMALL, "--data.devices", "2", *ENDLESS]
    limit = ["--time=2", "--signal=B:CONT@0"]
    job = submit(slurm, "--job-name=l", *limit, "--ntasks=3", "jobs/train.sbatch", *flags)
    run, log = slurm / "runs" / "l", slurm / f"l-{job}.log"
    wait_for_rounds(job, log, run, 9)
    wait_at_reduced_speed("l", log, STOPPED)
    ended = wait_for_state(job, "TIMEOUT", "FAILED", seconds=300)
    assert ended["JobState"] == "TIMEOUT"
    assert "DUE TO TIME LIMIT" in log.read_text()
    (stopped_after,) = map(int, re.findall(rf"{STOPPED} (\d+)", log.read_text()))
    assert rounds_of(run)[-1] == stopped_after
    assert checkpoints_of(run)[-1].name == f"round_{stopped_after:06d}"


def test_an_array_trains_algorithms_and_seeds_and_evaluate_scores_a_run(slurm, monkeypatch):
    monkeypatch.setenv("ALGORITHMS", "ren:parallel fedgan")
    monkeypatch.setenv("SEEDS", "4 5")
    flags = [*SMALL, "--data.devices", "2", "--training.rounds", "3"]
    array = ["--array=0-3%2", "--ntasks=3", "jobs/sweep.sbatch", "jobs/digits.toml"]
    job = submit(slurm, *array, *flags)
    names = ["ren-parallel-seed4", "ren-parallel-seed5", "fedgan-seed4", "fedgan-seed5"]
    for index, name in enumerate(names):
        ended = wait_for_state(f"{job}_{index}", *ENDED)
        assert ended["JobState"] == "COMPLETED", (slurm / f"sweep-{job}_{index}.log").read_text()
        exported = slurm / "runs" / f"sweep-{name}" / "generator.json"
        assert json.loads(exported.read_text())["round"] == 3
    job = submit(slurm, "--ntasks=2", "jobs/evaluate.sbatch", f"runs/sweep-{names[0]}")
    ended = wait_for_state(job, *ENDED)
    assert ended["JobState"] == "COMPLETED", (slurm / f"evaluate-{job}.log").read_text()
    assert (slurm / "runs" / f"sweep-{names[0]}" / "evaluation.jsonl").exists()


def test_a_killed_rank_ends_the_job_and_a_requeued_job_resumes(slurm):
    flags = [*SMALL, "--data.devices", "2", *ENDLESS, "--checkpoint.every", "5"]
    job = submit(slurm, "--job-name=k", "--ntasks=3", "jobs/train.sbatch", *flags)
    run, log = slurm / "runs" / "k", slurm / f"k-{job}.log"
    wait_for_rounds(job, log, run, 9)
    rank_processes("k")[-1].kill()
    # srun sends SIGTERM to the other ranks, which means "stop after this round" to them. After
    # SLURM's KillWait, 30 seconds by default, it sends SIGKILL. The ranks must end earlier.
    assert wait_for_state(job, "COMPLETED", "FAILED", seconds=20)["JobState"] == "FAILED"
    assert "of this machine has died, and the job ends" in log.read_text()
    # The requeued job finds the shared memory of its dead ranks.
    rounds = len(completed_rounds(run)) + 9
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for_rounds(job, log, run, rounds)
    subprocess.run(["scancel", job], check=True)
    wait_for_state(job, "CANCELLED")


def test_a_killed_rank_alone_on_its_node_ends_the_job(slurm):
    flags = [*SMALL, "--data.devices", "2", *ENDLESS]
    spread = ["--nodes=2", "--ntasks=3", "--distribution=block"]
    job = submit(slurm, "--job-name=o", *spread, "jobs/train.sbatch", *flags)
    log = slurm / f"o-{job}.log"
    wait_for_rounds(job, log, slurm / "runs" / "o", 9)
    last_rank = rank_processes("o")[-1]
    assert last_rank.environ()["SLURMD_NODENAME"] == "n2"
    last_rank.kill()
    # Without its connection to the server, SLURM would wait for KillWait, 30 seconds.
    assert wait_for_state(job, "COMPLETED", "FAILED", seconds=20)["JobState"] == "FAILED"
    assert re.search(r"rank 2 on \S+ has died, and the job ends", log.read_text())
