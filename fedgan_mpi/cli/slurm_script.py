"""`jobs`: the SLURM script that trains, for a number of devices and a kind of node.

jobs/train.sbatch is what it prints for nine ranks without GPUs.
"""

from __future__ import annotations

import re

from fedgan_mpi.cli.commands import Jobs
from fedgan_mpi.errors import UserError

_BODY = r"""# Leave all GPUs of a node visible to all of its tasks (no --gpus-per-task, no
# --gpu-bind): the program gives each rank the GPU of its place on the node.
#SBATCH --cpus-per-task=1
#SBATCH --time=@time@
# Two minutes before its time is up the job ends after its round, and goes on in another.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

# The shell has the signal that time is up; the launcher hands it to every rank. SLURM may send it a
# minute early: ranks whose Python is not there yet would die of it, and have 15 seconds to begin.
asked=no launcher=
hand_on() {
    asked=yes
    [ -n "$launcher" ] || return 0
    (sleep $((SECONDS < 15 ? 15 - SECONDS : 0)) && kill -USR1 "$launcher") 2>/dev/null &
}
trap hand_on USR1

source "${FEDGAN_MPI_JOBS:-${SLURM_SUBMIT_DIR:-$PWD}/jobs}/site.sh"

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# Network file systems often cannot lock; shards are only read.
export HDF5_USE_FILE_LOCKING=FALSE

# A rank that was killed leaves its shared memory behind, and MPICH names it after job and step: the
# same job would find it, and wait for the dead. What is younger may be of another job that begins.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        find /dev/shm -maxdepth 1 -user "$(id -un)" -name 'mpich_shm_*' \
        ! -newermt '20 seconds ago' -delete || true
fi

# The run is named after the job: the same script submitted again goes on with it.
command=($LAUNCH python -m fedgan_mpi train "$@" --resume auto
    --run.name "${RUN_NAME:-$SLURM_JOB_NAME}" --link.deadline "${DEADLINE:-1800}")
echo "${command[*]}"
SECONDS=0
"${command[@]}" &
launcher=$!
if [ "$asked" = yes ]; then hand_on; fi # it came before
# A trap also ends `wait`, so wait until the launcher itself has ended.
while wait "$launcher" && status=0 || status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
if [ "$asked" = yes ] && [ "$status" -gt 128 ]; then
    wait "$launcher" && status=0 || status=$?
fi

# 75: stopped by a signal, to go on. After scancel nobody asked, and the job stays ended.
if [ "$status" = 75 ] && [ "$asked" = yes ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def slurm_script(command: Jobs) -> str:
    """Raises UserError for a time that SLURM would not take, or too short to do anything in."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", command.time):
        right = "as SLURM has it, 04:00:00 or 1-12:00:00"
        raise UserError(f"--time is {command.time!r}, but must be {right}")
    if _minutes(command.time) < 5:
        right = "at least 5 minutes, of which two are for its end"
        raise UserError(f"--time is {command.time!r}, but must be {right}")
    ranks, gpus = command.devices + 1, command.gpus_per_node
    flags = [f"--ntasks={ranks}"]
    if gpus:
        nodes = -(-ranks // gpus)
        flags += [f"--nodes={nodes}", f"--ntasks-per-node={gpus}", f"--gpus-per-node={gpus}"]
    head = [
        "#!/usr/bin/env bash",
        f"# Train one experiment: a server and {command.devices} device ranks, one task each.",
        "#",
        "#   sbatch --job-name=NAME SCRIPT [FILE.toml] [flags of fedgan_mpi]",
        "#",
        *(f"#SBATCH {flag}" for flag in ("--job-name=fedgan_mpi", *flags)),
    ]
    return "\n".join(head) + "\n" + _BODY.replace("@time@", command.time)


def _minutes(time: str) -> float:
    """Of a time as SLURM has it: minutes, minutes:seconds, hours:minutes:seconds, or any beginning
    of days-hours:minutes:seconds."""
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return 1440 * int(days or 0) + 60 * hours + minutes + seconds / 60
