"""Training that continues after the death of devices (`link.survive`); needs Open MPI 5."""

from __future__ import annotations

import re

import pytest
from dying_ranks import VERSION, approximate_scores, needs_ulfm, run_job

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.testing.jobs import SMALL
from fedgan_mpi.testing.jobs import run_job as run_plain_job
from fedgan_mpi.testing.runs import generator_bytes, stats_lines, stats_without_seconds

pytestmark = pytest.mark.jobs

MDGAN_WITH_ABSENT_DEVICES = [
    "--algorithm.name=mdgan", "--participation.policy=random", "--participation.count=2",
]  # fmt: skip


@needs_ulfm
@pytest.mark.parametrize(
    ("dies", "flags"),
    [
        pytest.param("3:4", [], id="in the first score"),
        pytest.param("2:17", [], id="after the numbers of round 2"),
        pytest.param(
            "3:17 2:25", ["--algorithm.schedule=parallel", "--model.ema=0.9"], id="two devices"
        ),
        pytest.param("1:14", MDGAN_WITH_ABSENT_DEVICES, id="mdgan"),
    ],
)
def test_the_survivors_continue_as_after_a_removal(tmp_path, dies, flags):
    done = run_job(tmp_path, "--run.name", "a", *flags, dies=dies)
    assert done.returncode == 0, done.stderr
    deaths = re.findall(
        r"rank ([\d, ]+) has died, with device ([\d, ]+); .*after round (\d+)", done.stderr
    )
    assert len(deaths) == len(dies.split()), done.stderr
    last_round: dict[str, str] = {}
    for ranks, devices, round in deaths:
        assert ranks == devices
        for device in devices.split(", "):
            last_round.setdefault(device, round)
    leaves = " ".join(f"{device}:{round}" for device, round in last_round.items())
    oracle = run_job(tmp_path, "--run.name", "b", *flags, survive=False, leaves=leaves)
    assert oracle.returncode == 0, oracle.stderr
    runs = tmp_path / "runs"
    assert stats_without_seconds(runs / "a") == approximate_scores(runs / "b")
    assert generator_bytes(runs / "a") == generator_bytes(runs / "b")
    dead = {int(device) for device in last_round}
    for line in stats_lines(runs / "a"):
        if line["round"] == 8 and "metric" not in line:
            assert not dead & set(line["participants"])
    if len(dead) == 2:
        # A resumed job has all devices again, with their states of the last checkpoint.
        resume = ("--resume", "runs/a", "--training.rounds", "10", "--link.survive", "false")
        resumed = run_job(tmp_path, *resume, survive=False)
        assert resumed.returncode == 0, resumed.stderr


@needs_ulfm
def test_the_death_of_the_server_ends_the_job(tmp_path):
    # A checkpoint after every round: one is half written, and the server's part is lost.
    done = run_job(tmp_path, "--run.name", "a", "--checkpoint.every", "1", dies="0:30")
    assert done.returncode != 0
    assert "rank 0 has died, and rank 0 is the server: restart with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoints_of(tmp_path / "runs" / "a")
    assert not list((tmp_path / "runs" / "a" / "checkpoints").glob(".*"))


@needs_ulfm
def test_the_death_of_the_last_device_ends_the_job(tmp_path):
    done = run_job(tmp_path, "--run.name", "a", dies="1:12 2:16 3:16")
    assert done.returncode != 0
    assert "no device is left" in done.stderr
    assert "Traceback" not in done.stderr


@needs_ulfm
def test_survive_without_ulfm_is_refused(tmp_path):
    done = run_job(tmp_path, "--run.name", "a", "--link.survive", "true", survive=False)
    assert done.returncode != 0
    assert "link.survive needs an Open MPI of 5 or later" in done.stderr
    assert not (tmp_path / "runs" / "a" / "stats.jsonl").exists()


@pytest.mark.skipif("Open MPI" in VERSION, reason="this MPI may have ULFM")
def test_survive_with_another_mpi_is_refused(tmp_path):
    done = run_plain_job(3, "--link.survive", "true", *SMALL, cwd=tmp_path)
    assert done.returncode != 0
    assert "link.survive needs an Open MPI of 5 or later" in done.stderr
    assert "Traceback" not in done.stderr
