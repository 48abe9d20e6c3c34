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


def script_of(capsys, *flags: str) -> str:
    """Return the script that the command prints, after bash has checked its syntax."""
    assert main(["jobs", *flags]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    return script


def requests_of(script: str, prefix: str) -> set[str]:
    """Return what the lines of the scheduler request."""
    lines = script.splitlines()
    return {line.removeprefix(prefix).strip() for line in lines if line.startswith(prefix)}


@pytest.mark.parametrize(
    ("devices", "gpus", "nodes", "tasks"),
    # 8 devices on 8 GPUs: the server shares one of them, and needs no second node.
    [(8, 8, 1, 9), (32, 4, 8, 5), (9, 4, 3, 4), (1, 4, 1, 2)],
)
def test_the_server_shares_a_gpu(capsys, devices, gpus, nodes, tasks):
    flags = ["--devices", str(devices), "--gpus-per-node", str(gpus), "--time", "04:00:00"]
    requests = requests_of(script_of(capsys, *flags), "#SBATCH")
    assert requests >= {
        f"--ntasks={devices + 1}", f"--nodes={nodes}", f"--ntasks-per-node={tasks}",
        f"--gpus-per-node={gpus}", "--cpus-per-task=4", f"--mem={8 * tasks}G", "--time=04:00:00",
    }  # fmt: skip
    assert nodes * tasks >= devices + 1 and nodes * gpus >= devices


def test_cores_memory_and_the_type_of_mpi(capsys):
    script = script_of(capsys, "--cpus-per-task", "6", "--mem", "64G", "--mpi", "cray_shasta")
    assert requests_of(script, "#SBATCH") >= {"--cpus-per-task=6", "--mem=64G"}
    # The type replaces that of site.sh, and srun gets the cores that SLURM gave to the job.
    launch = 'LAUNCH="srun --mpi=cray_shasta --kill-on-bad-exit=1"'
    assert script.index('source "$site"') < script.index(launch) < script.index("$LAUNCH python")
    assert 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"' in script
    plain = script_of(capsys)
    assert "--mem" not in plain and "LAUNCH=" not in plain
    with_gpus = script_of(capsys, "--gpus-per-node", "4", "--mem", "64G")
    assert "--mem=64G" in requests_of(with_gpus, "#SBATCH")
    for flags, problem in (
        (["--mem", "64"], "--mem is '64', but must be a size such as 64G"),
        (["--cpus-per-task", "0"], "--cpus-per-task is 0, but must be from 1"),
        (["--scheduler", "pbs", "--mpi", "pmix"], "--mpi is 'pmix', but must be left out"),
        (["--scheduler", "flux", "--mem", "4G"], "--mem is '4G', but must be left out"),
        (["--gpu-bind", "closest"], "--gpu-bind is 'closest', but must be left out"),
        (
            ["--scheduler", "pbs", "--gpus-per-node", "4", "--gpu-bind", "closest"],
            "--gpu-bind is 'closest', but must be left out",
        ),
    ):
        assert main(["jobs", *flags]) == 1
        assert problem in capsys.readouterr().err


def test_tasks_that_see_the_closest_gpus_exchange_through_host_memory(capsys):
    """MPI cannot copy between GPUs of which each process sees one only."""
    plain = script_of(capsys, "--gpus-per-node", "4")
    script = script_of(capsys, "--gpus-per-node", "4", "--gpu-bind", "closest")
    assert "--gpu-bind=closest" in requests_of(script, "#SBATCH")
    # After the user's flags, so that none of them selects another route.
    assert 'train "$@" --resume auto --link.route host\n' in script
    assert "--link.route" not in plain and "Leave all GPUs" in plain
    assert not any("gpu-bind" in request for request in requests_of(plain, "#SBATCH"))
    assert "Leave all GPUs" not in script


FLAGS = ["--devices", "8", "--gpus-per-node", "4", "--time", "04:00:00"]


def test_pbs(capsys):
    script = script_of(capsys, "--scheduler", "pbs", *FLAGS, "--mem", "64G")
    assert requests_of(script, "#PBS") >= {
        "-l select=2:ncpus=20:mpiprocs=5:ngpus=4:mem=64gb", "-l walltime=04:00:00"
    }  # fmt: skip


def test_flux(capsys):
    script = script_of(capsys, "--scheduler", "flux", *FLAGS)
    assert requests_of(script, "#flux:") >= {
        "--nodes=2", "--nslots=2", "--cores-per-slot=20", "--gpus-per-slot=4", "--time-limit=240m",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scheduler", "environment", "launcher", "expected"),
    [
        (
            "pbs",
            {"PBS_JOBNAME": "mine", "ARGS": "my.toml --training.rounds 7"},
            "mpiexec",
            "-n 9 python -m fedgan_mpi train my.toml --training.rounds 7 --resume auto "
            "--run.name mine --link.deadline 1800",
        ),
        (
            "flux",
            {"RUN_NAME": "mine"},
            "flux",
            "run -N 2 -n 9 -c 4 -o gpu-affinity=off --time-limit=239m --signal=SIGUSR1@120s "
            "python -m fedgan_mpi train my.toml --resume auto --run.name mine --link.deadline 1800",
        ),
    ],
)
def test_the_launcher_gets_the_ranks_and_the_experiment(
    capsys, tmp_path, scheduler, environment, launcher, expected
):
    """Without the scheduler: a launcher that prints its arguments, and fails as a stopped job."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "site.sh").write_text("")
    for path in (tmp_path / "jobs", tmp_path / "jobs" / "site.sh"):
        path.chmod(0o755)
    fake = tmp_path / "bin" / launcher
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s " "$@"\nexit 75\n')
    fake.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(script_of(capsys, "--scheduler", scheduler, *FLAGS))
    path = f"{fake.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", script, "my.toml"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PATH": path, "PBS_O_WORKDIR": str(tmp_path), **environment},
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr
    assert done.returncode == 75


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


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("train.sbatch", "python -m fedgan_mpi train x --resume auto --run.name name"),
        ("evaluate.sbatch", "python -m fedgan_mpi evaluate x"),
        ("prep.sbatch", "python -m data_prep x"),
    ],
)
def test_ranks_start_by_the_sites_launcher_with_all_cores_of_a_task(tmp_path, script, command):
    """Since version 22.05, srun takes the number of cores from SRUN_CPUS_PER_TASK only."""
    launcher, site = tmp_path / "launcher", tmp_path / "site.sh"
    launcher.write_text('#!/bin/sh\necho "$SRUN_CPUS_PER_TASK cores: $*"\n')
    launcher.chmod(0o755)
    site.write_text(f"LAUNCH={launcher}\n")
    for path in (tmp_path, site):
        path.chmod(0o755)
    variables = {"FEDGAN_MPI_JOBS": str(tmp_path), "SLURM_CPUS_PER_TASK": "6"}
    done = subprocess.run(
        ["bash", JOBS / script, "x"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, **variables, "SLURM_JOB_NAME": "name"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"6 cores: {command}")


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
