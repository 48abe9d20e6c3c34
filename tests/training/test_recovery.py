"""Devices that die while the others go on. Needs an Open MPI of 5 or later."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.config import ParticipationConfig
from fedgan_mpi.federation.participation import Participation
from fedgan_mpi.testing.jobs import ENVIRONMENT, MPIRUN, SMALL, forked_python, run_job
from fedgan_mpi.testing.runs import generator_bytes, stats_lines, stats_without_seconds

pytestmark = pytest.mark.jobs
VERSION = MPIRUN and subprocess.check_output([MPIRUN, "--version"], text=True)
needs_ulfm = pytest.mark.skipif("Open MPI" not in VERSION, reason="no mpirun of Open MPI")
JOB = (
    *SMALL[:4], "--training.rounds", "8", "--evaluation.every", "3", "--checkpoint.every", "2",
    "--data.devices", "3", "--link.average", "gather",
)  # fmt: skip

# DIES, "rank:arrival …": the rank kills itself at its n-th exchange of the rounds. A sum counts a
# second time once the rank's numbers are sent.
# LEAVES, "device:round", is the oracle: the device is removed from that round on.
PROGRAM = """
import os, signal, sys
from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.participation import Participation
from fedgan_mpi.training import loop as train

dies = dict(tuple(map(int, pair.split(":"))) for pair in os.environ.get("DIES", "").split())
leaves = [tuple(map(int, pair.split(":"))) for pair in os.environ.get("LEAVES", "").split()]
arrive, allreduce, watch, build = Link._arrive, Link.sum, Link.watch, train.build_rank_state
arrivals = None

def tick(link):
    global arrivals
    if arrivals is not None:
        arrivals += 1
        if link._origin[link.rank] in dies and arrivals == dies[link._origin[link.rank]]:
            os.kill(os.getpid(), signal.SIGKILL)

def count(link):
    tick(link)
    arrive(link)

def sum(link, numbers, overlap=lambda: None):
    def act():
        tick(link)
        overlap()
    tick(link)
    return allreduce(link, numbers, overlap=act)

def begin(link, deadline):
    global arrivals
    arrivals = 0 if arrivals is None else arrivals
    watch(link, deadline)

def build_rank_state(*arguments):
    rank_state = build(*arguments)
    for device, round in leaves:
        rank_state.participation.remove([device], round)
    return rank_state

Link._arrive, Link.sum, Link.watch, train.build_rank_state = count, sum, begin, build_rank_state
from fedgan_mpi.__main__ import main
status = main(sys.argv[1:])
sys.exit(status)
"""


def job(cwd: Path, *flags: str, ulfm: bool = True, **environment: str):
    (cwd / "program.py").write_text(PROGRAM)
    mode = ["--with-ft", "ulfm", "--oversubscribe", "--allow-run-as-root"] if ulfm else []
    survive = ["--link.survive", "true"] if ulfm else []
    python = [sys.executable] if ulfm else forked_python()  # forks hang once one has died
    return subprocess.run(
        [MPIRUN, *mode, "-n", "4", *python, "program.py", *JOB, *survive, *flags],
        cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def same(run: Path) -> list[dict]:
    """Lines without seconds, and scores but for rounding: it depends on how many ranks add up."""
    about = {"value": pytest.approx, "floor": pytest.approx}
    return [
        {k: about.get(k, lambda x: x)(v) for k, v in line.items() if not k.startswith("seconds")}
        for line in stats_lines(run)
    ]


def exact(run: Path) -> list[dict]:
    return stats_without_seconds(run)


@needs_ulfm
@pytest.mark.parametrize(
    ("dies", "flags"),
    [
        ("3:4", []),  # in the first score
        ("2:15", []),  # at what it begins of round 3, its numbers of round 2 on their way
        ("3:17 2:25", ["--algorithm.schedule", "parallel", "--model.ema", "0.9"]),
        (
            "1:14",
            [
                "--algorithm.name",
                "mdgan",
                "--participation.policy",
                "random",
                "--participation.count",
                "2",
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_others_go_on_as_if_it_had_left(tmp_path, dies, flags):
    done = job(tmp_path, "--run.name", "a", *flags, DIES=dies)
    assert done.returncode == 0, done.stderr
    told = re.findall(
        r"rank ([\d, ]+) has died, with device ([\d, ]+); .*after round (\d+)", done.stdout
    )
    assert len(told) == len(dies.split()), done.stdout + done.stderr
    ended: dict[str, str] = {}
    for ranks, devices, round in told:
        assert ranks == devices
        for device in devices.split(", "):
            ended.setdefault(device, round)
    leaves = " ".join(f"{device}:{round}" for device, round in ended.items())
    oracle = job(tmp_path, "--run.name", "b", *flags, ulfm=False, LEAVES=leaves)
    assert oracle.returncode == 0, oracle.stderr
    runs = tmp_path / "runs"
    assert exact(runs / "a") == same(runs / "b")
    assert generator_bytes(runs / "a") == generator_bytes(runs / "b")
    missing = {int(device) for device in ended}
    for line in stats_lines(runs / "a"):
        if line["round"] == 8 and "metric" not in line:
            assert not missing & set(line["participants"])
    if len(ended) == 1:
        return
    # All return by resume, from their own states where a checkpoint has them.
    more = ("--resume", "runs/a", "--training.rounds", "10", "--link.survive", "false")
    again = job(tmp_path, *more, ulfm=False)
    assert again.returncode == 0, again.stderr


@needs_ulfm
def test_the_servers_death_ends_the_job(tmp_path):
    # There is always a checkpoint under way, of which the server's part is lost.
    done = job(tmp_path, "--run.name", "a", "--checkpoint.every", "1", DIES="0:12")
    assert done.returncode != 0
    assert "rank 0 has died, and rank 0 is the server: go on with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoints_of(tmp_path / "runs" / "a")
    assert not list((tmp_path / "runs" / "a" / "checkpoints").glob(".*"))


@needs_ulfm
def test_the_last_devices_death_ends_the_job(tmp_path):
    done = job(tmp_path, "--run.name", "a", DIES="1:12 2:16 3:16")
    assert done.returncode != 0
    assert "no device is left" in done.stderr
    assert "Traceback" not in done.stderr


@needs_ulfm
def test_without_ulfm_it_is_refused(tmp_path):
    done = job(tmp_path, "--run.name", "a", "--link.survive", "true", ulfm=False)
    assert done.returncode != 0
    assert "link.survive needs an Open MPI of 5 or later" in done.stderr
    assert not (tmp_path / "runs" / "a" / "stats.jsonl").exists()


@pytest.mark.skipif("Open MPI" in VERSION, reason="for MPIs that cannot")
def test_where_the_mpi_cannot_it_is_refused(tmp_path):
    done = run_job(3, "--link.survive", "true", *SMALL, cwd=tmp_path)
    assert done.returncode != 0
    assert "link.survive needs an Open MPI of 5 or later" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("policy", ["all", "random", "round_robin", "balanced"])
def test_who_has_left_takes_no_part(policy):
    histograms = [[3, 0], [0, 3], [2, 1], [1, 2]]

    def people():
        return Participation(
            ParticipationConfig(policy=policy, count=None if policy == "all" else 3),
            images=[3, 3, 3, 3],
            batch_sizes=[3] * 4,
            shares="data",
            seed=1,
            histograms=histograms,
        )

    whole, smaller = people(), people()
    smaller.participants(9)
    smaller.remove([2], 3)
    smaller.remove([2, 4], 6)
    for t in range(3):
        assert smaller.participants(t) == whole.participants(t)
    for t in range(3, 12):
        present = smaller.participants(t)
        assert present == sorted(set(present)) and 2 not in present
        assert len(present) == (3 if t < 6 else 2)
        assert (4 in present) <= (t < 6)
        assert sum(smaller.shares(t).values()) == pytest.approx(1)
    assert any(2 in whole.participants(t) for t in range(3, 12))
