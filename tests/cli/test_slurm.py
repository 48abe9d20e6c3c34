"""The scripts of jobs/ as they are, on a real SLURM of two nodes; site.sh alone is another."""

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
from whole_jobs import SMALL, lines, rounds_told

from fedgan_mpi.checkpoint.format import checkpoints_of

ROOT = Path(__file__).parents[2]
SCRIPTS = ("train.sbatch", "evaluate.sbatch", "prep.sbatch", "sweep.sbatch")
STOPPED = "stopped by a signal after round"
needs_slurm = pytest.mark.slurm
pytestmark = pytest.mark.timeout(900)
"""Debian's slurm-wlm and munge, and root: see .ci/slurm."""


def test_the_train_script_is_what_the_generator_prints(capsys):
    from fedgan_mpi.__main__ import main

    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == (ROOT / "jobs" / "train.sbatch").read_text()
    asked = ["--devices", "32", "--gpus-per-node", "4", "--time", "04:00:00"]
    assert main(["jobs", *asked]) == 0
    script = capsys.readouterr().out
    for line in ("--ntasks=33", "--nodes=9", "--gpus-per-node=4", "--time=04:00:00"):
        assert f"#SBATCH {line}\n" in script
    assert main(["jobs", "--time", "4h"]) == 1
    assert "--time is '4h', but must be as SLURM has it" in capsys.readouterr().err
    for short in ("4", "04:59", "00:04:00", "0-00:04"):
        assert main(["jobs", "--time", short]) == 1
        assert f"--time is '{short}', but must be at least 5 minutes" in capsys.readouterr().err
    for enough in ("5", "05:00", "00:05:00", "0-01", "1-00:00:00"):
        assert main(["jobs", "--time", enough]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", ROOT / "jobs" / script], check=True)


def test_a_restarted_job_removes_what_its_dead_left_and_nothing_of_a_job_that_begins(tmp_path):
    """MPICH hangs where its segment goes away between its making and the others' coming."""
    script = (ROOT / "jobs" / "train.sbatch").read_text()
    (command,) = re.findall(r"find /dev/shm(?:.*\\\n)?.*-delete", script)
    old, young = tmp_path / "mpich_shm_1_0", tmp_path / "mpich_shm_2_0"
    for path in (old, young, tmp_path / "others"):
        path.touch()
    os.utime(old, (time.time() - 60,) * 2)
    os.utime(tmp_path / "others", (time.time() - 60,) * 2)
    subprocess.run(["bash", "-c", command.replace("/dev/shm", str(tmp_path))], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mpich_shm_2_0", "others"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A place to submit from; its environment finds the cluster and this machine's site.sh."""
    place = tmp_path_factory.mktemp("slurm") / "place"
    shutil.copytree(ROOT / "jobs", place / "jobs")
    (place / "jobs" / "site.sh").write_text(
        f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{ROOT}"\n'
        'LAUNCH="srun --mpi=pmi2 --kill-on-bad-exit=1"\n'
    )
    # Not in pytest's directory: munged is another user, to whom every pytest that begins closes it.
    with tempfile.TemporaryDirectory(prefix="slurm-") as cluster:
        subprocess.run([ROOT / ".ci" / "slurm", "up", cluster], check=True, timeout=150)
        os.environ["SLURM_CONF"] = f"{cluster}/slurm.conf"
        yield place
        del os.environ["SLURM_CONF"]
        subprocess.run([ROOT / ".ci" / "slurm", "down", cluster], check=True, timeout=60)


def submit(place: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable", *arguments], cwd=place, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def about(job: str) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    return dict(re.findall(r"(\w+)=(\S*)", shown.stdout))


def wait_for(job: str, *states: str, seconds: float = 200) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    while (now := about(job)).get("JobState") not in states:
        assert time.monotonic() < deadline, now
        time.sleep(0.2)
    return now


def wait_for_rounds(job: str, log: Path, run: Path, rounds: int) -> None:
    deadline = time.monotonic() + 200
    while rounds_told(run) < rounds:
        told = log.read_text() if log.exists() else "no log"
        assert time.monotonic() < deadline, (about(job), told)
        time.sleep(0.2)


def rounds_of(run: Path) -> list[int]:
    return [line["round"] for line in lines(run) if "metric" not in line]


def ranks_of(run: str) -> list[psutil.Process]:
    """The processes of a job, in the order of their ranks."""
    ranks = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"fedgan_mpi", run, "train"} <= set(process.info["cmdline"] or [])
        and "srun" not in process.info["cmdline"][0]
    ]
    return sorted(ranks, key=lambda process: int(process.environ()["SLURM_PROCID"]))


def wait_slowly(run: str, log: Path, text: str) -> None:
    """Until the log says so. The job goes on at a tenth of its speed, and leaves the cores to
    others."""
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        ranks: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):  # it ends
            ranks = ranks_of(run)
        for request, seconds in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.send_signal(request)
            time.sleep(seconds)


@needs_slurm
def test_a_job_that_is_preempted_is_requeued_and_goes_on(slurm):
    flags = [*SMALL, "--data.devices", "3", "--checkpoint.every", "200"]
    job = submit(
        slurm, "--job-name=a", "--nodes=2", "--ntasks=4", "jobs/train.sbatch", "jobs/digits.toml",
        *flags, "--training.rounds", "150",
    )  # fmt: skip
    run, log = slurm / "runs" / "a", slurm / f"a-{job}.log"
    wait_for_rounds(job, log, run, 20)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_slowly("a", log, STOPPED)  # and so it does not come to its end before
    ended = wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=400)
    text = log.read_text()
    assert ended["JobState"] == "COMPLETED", text
    assert ended["Restarts"] == "1"
    assert text.count(STOPPED) == 1
    assert rounds_of(run) == list(range(1, 151))
    assert json.loads((run / "generator.json").read_text())["round"] == 150


@needs_slurm
def test_a_job_whose_time_is_up_is_requeued_and_goes_on(slurm):
    """By SLURM's own clock, which may send the script's signal up to a minute early."""
    flags = [*SMALL, "--data.devices", "2", "--training.rounds", "1000000"]
    job = submit(slurm, "--job-name=t", "--time=4", "--ntasks=3", "jobs/train.sbatch", *flags)
    run, log = slurm / "runs" / "t", slurm / f"t-{job}.log"
    wait_for_rounds(job, log, run, 9)
    wait_slowly("t", log, STOPPED)
    wait_for_restart(job, log)
    told = re.findall(rf"{STOPPED} (\d+)", log.read_text())[-1]
    assert "TIME LIMIT" not in log.read_text()
    wait_for_rounds(job, log, run, int(told) + 9)
    assert rounds_of(run)[: int(told) + 9] == list(range(1, int(told) + 10))
    subprocess.run(["scancel", job], check=True)
    wait_for(job, "CANCELLED")


@needs_slurm
def test_a_job_that_runs_into_its_limit_has_a_checkpoint_of_its_last_round(slurm):
    """Without the script's signal in time: SIGTERM to all ranks, and SIGKILL soon after."""
    flags = [*SMALL, "--data.devices", "2", "--training.rounds", "1000000"]
    limit = ["--time=2", "--signal=B:CONT@0"]
    job = submit(slurm, "--job-name=l", *limit, "--ntasks=3", "jobs/train.sbatch", *flags)
    run, log = slurm / "runs" / "l", slurm / f"l-{job}.log"
    wait_for_rounds(job, log, run, 9)
    wait_slowly("l", log, STOPPED)
    assert wait_for(job, "TIMEOUT", "FAILED", seconds=300)["JobState"] == "TIMEOUT"
    assert "DUE TO TIME LIMIT" in log.read_text()
    (told,) = re.findall(rf"{STOPPED} (\d+)", log.read_text())
    assert rounds_of(run)[-1] == int(told)
    assert checkpoints_of(run)[-1].name == f"round_{int(told):06d}"


def wait_for_restart(job: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while (now := about(job)).get("Restarts", "0") == "0":
        told = log.read_text() if log.exists() else "no log"
        assert now.get("JobState") not in ("FAILED", "TIMEOUT", "COMPLETED"), told
        assert time.monotonic() < deadline, (now, told)
        time.sleep(0.2)


@needs_slurm
def test_an_array_trains_each_algorithm_in_each_seed_and_evaluate_scores_them(slurm):
    os.environ.update(ALGORITHMS="ren:parallel fedgan", SEEDS="4 5")
    flags = [*SMALL, "--data.devices", "2", "--training.rounds", "3"]
    job = submit(
        slurm, "--array=0-3%2", "--ntasks=3", "jobs/sweep.sbatch", "jobs/digits.toml", *flags
    )
    names = ["ren-parallel-seed4", "ren-parallel-seed5", "fedgan-seed4", "fedgan-seed5"]
    for index, name in enumerate(names):
        ended = wait_for(f"{job}_{index}", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        assert ended["JobState"] == "COMPLETED", (slurm / f"sweep-{job}_{index}.log").read_text()
        exported = slurm / "runs" / f"sweep-{name}" / "generator.json"
        assert json.loads(exported.read_text())["round"] == 3
    del os.environ["ALGORITHMS"], os.environ["SEEDS"]
    job = submit(slurm, "--ntasks=2", "jobs/evaluate.sbatch", f"runs/sweep-{names[0]}")
    ended = wait_for(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    assert ended["JobState"] == "COMPLETED", (slurm / f"evaluate-{job}.log").read_text()
    assert (slurm / "runs" / f"sweep-{names[0]}" / "evaluation.jsonl").exists()


@needs_slurm
def test_a_killed_rank_ends_its_job_which_goes_on_when_requeued(slurm):
    flags = [
        *SMALL,
        "--data.devices",
        "2",
        "--training.rounds",
        "100000",
        "--checkpoint.every",
        "5",
    ]
    job = submit(slurm, "--job-name=k", "--ntasks=3", "jobs/train.sbatch", *flags)
    run = slurm / "runs" / "k"
    wait_for_rounds(job, slurm / f"k-{job}.log", run, 9)
    ranks_of("k")[-1].kill()
    # srun ends the others with SIGTERM, which they take for "after this round", and a KillWait
    # later, 30 seconds here as by default, with SIGKILL. They end the job before that.
    assert wait_for(job, "COMPLETED", "FAILED", seconds=20)["JobState"] == "FAILED"
    assert "of this machine has died, and the job ends" in (slurm / f"k-{job}.log").read_text()
    # The same job again meets what its dead ranks have left in shared memory.
    before = rounds_told(run)
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for_rounds(job, slurm / f"k-{job}.log", run, before + 9)
    subprocess.run(["scancel", job], check=True)
    wait_for(job, "CANCELLED")


@needs_slurm
def test_a_rank_that_is_killed_alone_on_its_node_ends_its_job(slurm):
    flags = [*SMALL, "--data.devices", "2", "--training.rounds", "100000"]
    spread = ["--nodes=2", "--ntasks=3", "--distribution=block"]
    job = submit(slurm, "--job-name=o", *spread, "jobs/train.sbatch", *flags)
    log = slurm / f"o-{job}.log"
    wait_for_rounds(job, log, slurm / "runs" / "o", 9)
    *_, alone = ranks_of("o")
    assert alone.environ()["SLURMD_NODENAME"] == "n2"
    alone.kill()
    # Without its connection to the server it takes SLURM its KillWait of 30 seconds.
    assert wait_for(job, "COMPLETED", "FAILED", seconds=20)["JobState"] == "FAILED"
    assert re.search(r"rank 2 on \S+ has died, and the job ends", log.read_text())
