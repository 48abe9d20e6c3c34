"""The command `jobs`: generates a SLURM script that trains.

jobs/train.sbatch is its output for the default flags: eight device ranks, no GPUs.
"""

from __future__ import annotations

import re

from fedgan_mpi.cli.local_commands import Jobs
from fedgan_mpi.errors import UserError

_BODY = r"""# Leave all GPUs of a node visible to all of its tasks (no --gpus-per-task, no
# --gpu-bind). The program assigns each rank a GPU by its local rank.
#SBATCH --cpus-per-task=1
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

site="${FEDGAN_MPI_JOBS:-${SLURM_SUBMIT_DIR:-$PWD}/jobs}/site.sh"
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

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
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
command=($LAUNCH python -m fedgan_mpi train "$@" --resume auto
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

_MINIMUM_MINUTES = 5
"""Time limit of the shortest useful job. The signal arrives two minutes before its end."""


def slurm_script(command: Jobs) -> str:
    """Return the script. Raises UserError for a time limit that is malformed or too short."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", command.time):
        right = "in SLURM's notation, such as 04:00:00 or 1-12:00:00"
        raise UserError(f"--time is {command.time!r}, but must be {right}")
    if _minutes(command.time) < _MINIMUM_MINUTES:
        right = f"at least {_MINIMUM_MINUTES} minutes, because the last two are for the checkpoint"
        raise UserError(f"--time is {command.time!r}, but must be {right}")
    ranks, gpus = command.devices + 1, command.gpus_per_node
    flags = ["--job-name=fedgan_mpi", f"--ntasks={ranks}"]
    if gpus:
        nodes = -(-ranks // gpus)
        flags += [f"--nodes={nodes}", f"--ntasks-per-node={gpus}", f"--gpus-per-node={gpus}"]
    head = [
        "#!/usr/bin/env bash",
        f"# Train one experiment: a server and {command.devices} device ranks, one task each.",
        "#",
        "#   sbatch --job-name=NAME SCRIPT [FILE.toml] [flags of fedgan_mpi]",
        "#",
        *(f"#SBATCH {flag}" for flag in flags),
    ]
    return "\n".join(head) + "\n" + _BODY.replace("@time@", command.time)


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
