"""Jobs whose ranks kill themselves, and their oracle: jobs that remove the same devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.testing.jobs import ENVIRONMENT, MPIRUN, SMALL, forked_python
from fedgan_mpi.testing.runs import stats_lines

VERSION = MPIRUN and subprocess.check_output([MPIRUN, "--version"], text=True)
needs_ulfm = pytest.mark.skipif("Open MPI" not in VERSION, reason="no mpirun of Open MPI")

FLAGS = (
    *SMALL[:4], "--training.rounds", "8", "--evaluation.every", "3", "--checkpoint.every", "2",
    "--data.devices", "3", "--link.average", "gather",
)  # fmt: skip

PROGRAM = """
import os, signal, sys
from fedgan_mpi.__main__ import main
from fedgan_mpi.checkpoint.writer import CheckpointWriter
from fedgan_mpi.comm.link import Link
from fedgan_mpi.training import loop

def pairs(variable):
    return [tuple(map(int, pair.split(":"))) for pair in os.environ.get(variable, "").split()]

last_verb = dict(pairs("DIES")).get(int(os.environ.get("OMPI_COMM_WORLD_RANK", -1)))
watch_for_hangs, allreduce = Link.watch_for_hangs, Link.sum
build_rank_state, seal = loop.build_rank_state, CheckpointWriter.seal
verbs, is_sealing = 0, False

def count(verb):
    global verbs
    verbs += not is_sealing
    if verbs == last_verb:
        os.kill(os.getpid(), signal.SIGKILL)

def watch_and_count(link):
    watch_for_hangs(link)
    if count not in link.subscribers:
        link.subscribers.append(count)

def count_sum_twice(link, numbers, *, overlap=lambda: None):
    def count_and_overlap():
        if count in link.subscribers:
            count("numbers sent")
        overlap()
    return allreduce(link, numbers, overlap=count_and_overlap)

def seal_without_count(writer):
    global is_sealing
    is_sealing = True
    seal(writer)
    is_sealing = False

def build_and_remove(*arguments):
    rank_state = build_rank_state(*arguments)
    for device, round in pairs("LEAVES"):
        rank_state.participation.remove([device], round)
    return rank_state

Link.watch_for_hangs, Link.sum, loop.build_rank_state = (
    watch_and_count, count_sum_twice, build_and_remove
)
CheckpointWriter.seal = seal_without_count
sys.exit(main(sys.argv[1:]))
"""


def run_job(
    cwd: Path, *flags: str, dies: str = "", leaves: str = "", survive: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a job on 4 ranks with three devices.

    dies: "rank:n …". The rank kills itself at its n-th verb of the rounds. A sum counts twice: the
    second time after the rank has sent its numbers. The sum that seals a checkpoint, whose round
    depends on the disk, does not count.
    leaves: "device:round …". The device is removed from that round on.
    survive: start with ULFM and `link.survive`.
    """
    (cwd / "program.py").write_text(PROGRAM)
    ulfm = ["--with-ft", "ulfm", "--oversubscribe", "--allow-run-as-root"] if survive else []
    survive_flag = ["--link.survive", "true"] if survive else []
    python = [sys.executable] if survive else forked_python()  # forks hang after a death
    return subprocess.run(
        [MPIRUN, *ulfm, "-n", "4", *python, "program.py", *FLAGS, *survive_flag, *flags],
        cwd=cwd, env={**ENVIRONMENT, "DIES": dies, "LEAVES": leaves},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def approximate_scores(run: Path) -> list[dict]:
    """Return the lines of stats.jsonl without seconds, with approximate scores.

    The rounding of scores depends on the number of ranks.
    """
    return [
        {
            key: pytest.approx(value) if key in ("value", "floor") else value
            for key, value in line.items()
            if not key.startswith(("seconds", "peak_"))
        }
        for line in stats_lines(run)
    ]
