"""The SLURM scripts in jobs/ and the command `jobs`, without SLURM."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fedgan_mpi.__main__ import main

JOBS = Path(__file__).parents[2] / "jobs"


def test_the_train_script_is_the_output_of_the_command(capsys):
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == (JOBS / "train.sbatch").read_text()
    flags = ["--devices", "32", "--gpus-per-node", "4", "--time", "04:00:00"]
    assert main(["jobs", *flags]) == 0
    script = capsys.readouterr().out
    for line in ("--ntasks=33", "--nodes=9", "--gpus-per-node=4", "--time=04:00:00"):
        assert f"#SBATCH {line}\n" in script


def test_time_limits(capsys):
    assert main(["jobs", "--time", "4h"]) == 1
    assert "--time is '4h', but must be in SLURM's notation" in capsys.readouterr().err
    for short in ("4", "04:59", "00:04:00", "0-00:04"):
        assert main(["jobs", "--time", short]) == 1
        assert f"--time is '{short}', but must be at least 5 minutes" in capsys.readouterr().err
    for enough in ("5", "05:00", "00:05:00", "0-01", "1-00:00:00"):
        assert main(["jobs", "--time", enough]) == 0


@pytest.mark.parametrize("script", sorted(path.name for path in JOBS.glob("*.sbatch")))
def test_scripts_have_valid_shell_syntax(script):
    subprocess.run(["bash", "-n", JOBS / script], check=True)


def test_a_requeued_job_removes_old_shared_memory_only(tmp_path):
    """MPICH hangs if another starting job loses its segment before all ranks have opened it."""
    script = (JOBS / "train.sbatch").read_text()
    (command,) = re.findall(r"find /dev/shm(?:.*\\\n)?.*-delete", script)
    old, new, unrelated = (tmp_path / name for name in ("mpich_shm_1_0", "mpich_shm_2_0", "other"))
    for path in (old, new, unrelated):
        path.touch()
    for path in (old, unrelated):
        os.utime(path, (time.time() - 60,) * 2)
    subprocess.run(["bash", "-c", command.replace("/dev/shm", str(tmp_path))], check=True)
    assert sorted(tmp_path.iterdir()) == [new, unrelated]


@pytest.mark.parametrize(
    "script", ["train.sbatch", "evaluate.sbatch", "prep.sbatch", "sweep.sbatch"]
)
@pytest.mark.parametrize(
    ("path", "mode", "is_refused"),
    [
        ("site.sh", 0o644, False),
        ("site.sh", 0o646, True),
        ("site.sh", 0o664, True),
        (".", 0o775, True),
        (".", 0o1777, True),
        ("train.sbatch", 0o666, None),
    ],
)
def test_a_job_refuses_files_that_others_can_write(tmp_path, script, path, mode, is_refused):
    """A job script runs them as the user."""
    jobs = tmp_path / "jobs"
    shutil.copytree(JOBS, jobs)
    for each in (jobs, *jobs.iterdir()):
        each.chmod(0o755 if each.is_dir() else 0o644)
        if os.getuid() == 0:
            os.chown(each, 0, 12345)  # a group of several users
    (jobs / "site.sh").write_text("echo site.sh has run\nexit 0\n")
    (jobs / path).chmod(mode)
    environment = {**os.environ, "FEDGAN_MPI_JOBS": str(jobs), "SLURM_ARRAY_TASK_ID": "0"}
    environment["SLURM_JOB_NAME"] = "name"
    done = subprocess.run(
        ["bash", JOBS / script], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    if is_refused is None:
        is_refused = script == "sweep.sbatch"  # the only one that runs it
    if is_refused:
        assert done.returncode == 1 and "can be written by other users; copy it" in done.stderr
        assert done.stdout == ""
    else:
        assert (done.returncode, done.stdout) == (0, "site.sh has run\n"), done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_job_refuses_a_file_of_another_user(tmp_path):
    site = tmp_path / "site.sh"
    site.write_text("echo site.sh has run\nexit 0\n")
    os.chown(site, 65534, 0)
    environment = {**os.environ, "FEDGAN_MPI_JOBS": str(tmp_path)}
    done = subprocess.run(
        ["bash", JOBS / "prep.sbatch"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and f"{site} can be written by other users" in done.stderr
