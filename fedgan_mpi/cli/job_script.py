"""The command `jobs`: generates a script that trains, for SLURM, PBS or Flux.

jobs/train.sbatch is its output for the default flags: eight device ranks on SLURM, no GPUs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedgan_mpi.cli.job_flags import Jobs
from fedgan_mpi.errors import UserError

_SITE = r"""site="${FEDGAN_MPI_JOBS:-${@directory@:-$PWD}/jobs}/site.sh"
# Whoever can write this file, or replace it, would run commands as you.
private=$(id -g) # a group with your own name has no other member
[ "$(id -gn)" = "$(id -un)" ] || private=0
if [ -n "$(find -L "${site%/*}" "$site" -maxdepth 0 \( -perm -002 \
    -o -perm -020 ! -gid "$private" -o ! -uid "$(id -u)" ! -uid 0 \))" ]; then
    echo "$site can be written by other users; copy it to a directory of your own," \
        "or make it yours and run: chmod go-w ${site%/*} $site" >&2
    exit 1
fi
source "$site"
"""

_ALL_VISIBLE = """# Leave all GPUs of a node visible to all of its tasks (no --gpus-per-task, no
# --gpu-bind). The program assigns each rank a GPU by its local rank."""
_CLOSEST = """\
# A task sees only its closest GPUs, and the program divides them among the tasks that see them.
# MPI cannot copy to a GPU that a task does not see, so vectors travel through host memory.
#SBATCH --gpu-bind=closest"""

_SLURM = r"""@gpus@
#SBATCH --time=@time@
# Two minutes before the time limit the job checkpoints after its round and is requeued.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

# SLURM sends SIGUSR1 to this shell, which forwards it to the launcher and so to every rank. SLURM
# may send it a minute early. It would kill a rank that has not installed its handler yet, so it is
# forwarded 15 seconds after the start or later.
preempted=no launcher=
forward_signal() {
    preempted=yes
    [ -n "$launcher" ] || return 0
    (sleep $((SECONDS < 15 ? 15 - SECONDS : 0)) && kill -USR1 "$launcher") 2>/dev/null &
}
trap forward_signal USR1

@site@
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# Since version 22.05, srun does not take over --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# Network file systems often lack locks. Shards are only read.
export HDF5_USE_FILE_LOCKING=FALSE

# A killed rank does not remove its shared memory. MPICH names it after job and step, so a requeued
# job would open it and wait for dead ranks. Newer files may belong to another job that is starting.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        find /dev/shm -maxdepth 1 -user "$(id -un)" -name 'mpich_shm_*' \
        ! -newermt '20 seconds ago' -delete || true
fi

# The run is named after the job, so that a resubmitted script resumes it.
command=($LAUNCH python -m fedgan_mpi train "$@" --resume auto@route@
    --run.name "${RUN_NAME:-$SLURM_JOB_NAME}" --link.deadline "${DEADLINE:-1800}")
echo "${command[*]}"
SECONDS=0
"${command[@]}" &
launcher=$!
if [ "$preempted" = yes ]; then forward_signal; fi # the signal arrived before the launcher started
# A trap also ends `wait`, so repeat it until the launcher has ended.
while wait "$launcher" && status=0 || status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ "$preempted" = yes ] && [ "$status" -gt 128 ]; then
    wait "$launcher" && status=0 || status=$?
fi

# Exit status 75: stopped by a signal, resumable. After scancel, SIGUSR1 has not arrived and the job
# is not requeued.
if [ "$status" = 75 ] && [ "$preempted" = yes ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""

_PBS = r"""#PBS -l walltime=@time@
#PBS -r y
#PBS -j oe
set -euo pipefail
cd "$PBS_O_WORKDIR"

@site@
export OMP_NUM_THREADS=@cpus@
export HDF5_USE_FILE_LOCKING=FALSE

# PBS starts the ranks with the MPI library's own launcher. Set MPIEXEC in site.sh to change it.
# ARGS holds the experiment and its flags: qsub -v ARGS="my.toml --training.rounds 500" SCRIPT
name="${RUN_NAME:-$PBS_JOBNAME}"
status=0
${MPIEXEC:-mpiexec} -n @ranks@ python -m fedgan_mpi train ${ARGS:-} --resume auto \
    --run.name "$name" --link.deadline "${DEADLINE:-1800}" || status=$?

# PBS sends SIGTERM before the time limit (attribute kill_delay). Exit status 75: stopped by a
# signal, resumable. Submit the same script again to continue.
exit "$status"
"""

_FLUX = r"""#flux: --time-limit=@minutes@m
set -euo pipefail

@site@
export OMP_NUM_THREADS=@cpus@
export HDF5_USE_FILE_LOCKING=FALSE

# Two minutes before its time limit, a minute before that of the script, the job checkpoints
# after its round. Exit status 75: resumable. Submit the script again with the same RUN_NAME.
# Without Flux's own assignment, each rank takes a GPU by its local rank.
exec flux run @flux_flags@ -o gpu-affinity=off \
    --time-limit=@less@m --signal=SIGUSR1@120s \
    python -m fedgan_mpi train "$@" --resume auto \
    --run.name "${RUN_NAME:-fedgan_mpi}" --link.deadline "${DEADLINE:-1800}"
"""

_MINIMUM_MINUTES = 5
"""Time limit of the shortest useful job. The signal arrives two minutes before its end."""
_GPU_CPUS = 4
"""Default cores of a task with a GPU. Its threads for MPI, checkpoints and autograd need some."""
_GPU_MEMORY = 8
"""Default GiB of a task with a GPU: for torch, CUDA, shards and pinned buffers. The default of a
site often depends on the number of cores."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the ranks of a job run."""

    ranks: int
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem: str | None
    """Memory of a node; None: what the site gives."""

    @staticmethod
    def of(command: Jobs) -> Layout:
        """Return the layout. Each device rank has a GPU if there are any; the server shares one.

        Without GPUs, the scheduler chooses the nodes of SLURM jobs. Others get one node.
        """
        ranks, gpus = command.devices + 1, command.gpus_per_node
        nodes = -(-command.devices // gpus) if gpus else 1
        ranks_per_node = -(-ranks // nodes)
        return Layout(
            ranks=ranks,
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            gpus_per_node=gpus,
            cpus_per_task=command.cpus_per_task or (_GPU_CPUS if gpus else 1),
            mem=command.mem or (f"{_GPU_MEMORY * ranks_per_node}G" if gpus else None),
        )


def job_script(command: Jobs) -> str:
    """Return the script. Raises UserError for a time limit that is malformed or too short."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", command.time):
        right = "in SLURM's notation, such as 04:00:00 or 1-12:00:00"
        raise UserError(f"--time is {command.time!r}, but must be {right}")
    if _minutes(command.time) < _MINIMUM_MINUTES:
        right = f"at least {_MINIMUM_MINUTES} minutes, because the last two are for the checkpoint"
        raise UserError(f"--time is {command.time!r}, but must be {right}")
    if command.mem is not None and not re.fullmatch(r"\d+[MGT]", command.mem):
        raise UserError(f"--mem is {command.mem!r}, but must be a size such as 64G")
    if command.mpi is not None and command.scheduler != "slurm":
        raise UserError(f"--mpi is {command.mpi!r}, but must be left out: only srun has such types")
    if command.gpu_bind == "closest" and not (
        command.scheduler == "slurm" and command.gpus_per_node
    ):
        right = "only SLURM binds GPUs so, and only with --gpus-per-node"
        raise UserError(f"--gpu-bind is 'closest', but must be left out: {right}")
    layout = Layout.of(command)
    head, body = {"slurm": _slurm, "pbs": _pbs, "flux": _flux}[command.scheduler](command, layout)
    return "\n".join(["#!/usr/bin/env bash", *head]) + "\n" + body


def _head(command: Jobs, submit: str) -> list[str]:
    return [
        f"# Train one experiment: a server and {command.devices} device ranks, one task each.",
        "#",
        f"#   {submit}",
        "#",
    ]


def _slurm(command: Jobs, layout: Layout) -> tuple[list[str], str]:
    flags = ["--job-name=fedgan_mpi", f"--ntasks={layout.ranks}"]
    if layout.gpus_per_node:
        flags += [
            f"--nodes={layout.nodes}",
            f"--ntasks-per-node={layout.ranks_per_node}",
            f"--gpus-per-node={layout.gpus_per_node}",
        ]
    flags.append(f"--cpus-per-task={layout.cpus_per_task}")
    if layout.mem is not None:
        flags.append(f"--mem={layout.mem}")
    submit = "sbatch --job-name=NAME SCRIPT [FILE.toml] [flags of fedgan_mpi]"
    site = _SITE.replace("@directory@", "SLURM_SUBMIT_DIR")
    if command.mpi is not None:
        site += f'LAUNCH="srun --mpi={command.mpi} --kill-on-bad-exit=1"\n'
    closest = command.gpu_bind == "closest"
    body = _SLURM.replace("@time@", command.time).replace("@site@", site)
    body = body.replace("@gpus@", _CLOSEST if closest else _ALL_VISIBLE)
    body = body.replace("@route@", " --link.route host" if closest else "")
    return [*_head(command, submit), *(f"#SBATCH {flag}" for flag in flags)], body


def _pbs(command: Jobs, layout: Layout) -> tuple[list[str], str]:
    chunk = [
        f"select={layout.nodes}",
        f"ncpus={layout.ranks_per_node * layout.cpus_per_task}",
        f"mpiprocs={layout.ranks_per_node}",
        *([f"ngpus={layout.gpus_per_node}"] if layout.gpus_per_node else []),
        *([f"mem={layout.mem.lower()}b"] if layout.mem else []),
    ]
    seconds = round(60 * _minutes(command.time))
    time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    body = _fill(_PBS, layout, "PBS_O_WORKDIR").replace("@time@", time)
    submit = 'qsub -N NAME -v ARGS="[FILE.toml] [flags of fedgan_mpi]" SCRIPT'
    head = ["#PBS -N fedgan_mpi", f"#PBS -l {':'.join(chunk)}"]
    return [*_head(command, submit), *head], body


def _flux(command: Jobs, layout: Layout) -> tuple[list[str], str]:
    if command.mem is not None:
        raise UserError(f"--mem is {command.mem!r}, but must be left out: Flux has no such request")
    minutes = round(_minutes(command.time))
    flags = [f"--nodes={layout.nodes}", f"--nslots={layout.nodes}"]
    cores = layout.ranks_per_node * layout.cpus_per_task
    flags.append(f"--cores-per-slot={cores}")
    run = f"-N {layout.nodes} -n {layout.ranks} -c {layout.cpus_per_task}"
    if layout.gpus_per_node:
        flags.append(f"--gpus-per-slot={layout.gpus_per_node}")
    body = _fill(_FLUX, layout, "FLUX_SUBMIT_DIR").replace("@flux_flags@", run)
    body = body.replace("@minutes@", str(minutes)).replace("@less@", str(minutes - 1))
    submit = "flux batch SCRIPT [FILE.toml] [flags of fedgan_mpi]"
    return [*_head(command, submit), *(f"#flux: {flag}" for flag in flags)], body


def _fill(template: str, layout: Layout, directory: str) -> str:
    return (
        template.replace("@site@", _SITE.replace("@directory@", directory))
        .replace("@cpus@", str(layout.cpus_per_task))
        .replace("@ranks@", str(layout.ranks))
    )


def _minutes(time: str) -> float:
    """Convert a time limit in SLURM's notation to minutes.

    Notations: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes,
    days-hours:minutes:seconds.
    """
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return 1440 * int(days or 0) + 60 * hours + minutes + seconds / 60
