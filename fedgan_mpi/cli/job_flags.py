"""The flags of the command `jobs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.cli.parser import check_range, new_parser, parse_flags
from fedgan_mpi.schema import MAX_INTEGER


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The command `jobs`."""

    scheduler: Literal["slurm", "pbs", "flux"]
    devices: int
    gpus_per_node: int
    cpus_per_task: int | None
    mem: str | None
    gpu_bind: Literal["none", "closest"]
    mpi: Literal["pmi2", "pmix", "cray_shasta"] | None
    time: str


def parse_jobs(arguments: list[str]) -> Jobs:
    """Parse the flags. Raises UserError for a number out of range."""
    parser = new_parser(
        "jobs [flags] > my.sbatch",
        "Print a job script that trains, for SLURM, PBS or Flux. Submit it, or edit it first.",
    )
    parser.add_argument(
        "--scheduler",
        type=Literal["slurm", "pbs", "flux"],
        default="slurm",
        help="batch system of the script; those for PBS and Flux do not requeue themselves",
    )
    parser.add_argument(
        "--devices", type=int, default=8, help="device ranks; the server is one more task"
    )
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        default=0,
        help="GPUs per node, one for each device rank; the server shares one; 0: CPUs only",
    )
    parser.add_argument(
        "--cpus-per-task",
        type=int,
        default=None,
        help="cores of each task; if omitted, 4 with GPUs and 1 without",
    )
    parser.add_argument(
        "--gpu-bind",
        type=Literal["none", "closest"],
        default="none",
        help="SLURM: closest shows each task only its closest GPUs; vectors then travel "
        "through host memory",
    )
    parser.add_argument(
        "--mem",
        type=str,
        default=None,
        help="memory per node, such as 64G; if omitted, 8G for each task with GPUs, otherwise what "
        "the site gives",
    )
    parser.add_argument(
        "--mpi",
        type=Literal["pmi2", "pmix", "cray_shasta"],
        default=None,
        help="SLURM: type of srun's --mpi; if omitted, LAUNCH of site.sh",
    )
    parser.add_argument(
        "--time", type=str, default="01:00:00", help="time limit in SLURM's notation"
    )
    args = parse_flags(parser, arguments)
    check_range("--devices", args.devices, 1, MAX_INTEGER)
    check_range("--gpus-per-node", args.gpus_per_node, 0, MAX_INTEGER)
    if args.cpus_per_task is not None:
        check_range("--cpus-per-task", args.cpus_per_task, 1, MAX_INTEGER)
    return Jobs(
        scheduler=args.scheduler,
        devices=args.devices,
        gpus_per_node=args.gpus_per_node,
        cpus_per_task=args.cpus_per_task,
        mem=args.mem,
        gpu_bind=args.gpu_bind,
        mpi=args.mpi,
        time=args.time,
    )
