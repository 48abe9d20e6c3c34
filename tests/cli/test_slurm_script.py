"""The SLURM scripts in jobs/ and the command `jobs`, without SLURM."""

from __future__ import annotations

import os
import re
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
