"""Whole jobs of algorithms, participants, wires and scores that a job must treat otherwise than the
default ones, and how they go on with another number of ranks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from company import RANKS, Company
from mpi4py import MPI
from whole_jobs import (
    SMALL,
    copy_without_last_checkpoint,
    generator,
    lines,
    lines_but_for_time,
    losses,
)

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.hardware.cpu import multiplies_bfloat16

pytestmark = pytest.mark.mpi(min_size=3)


@pytest.fixture
def run():
    """What starts a job; the test itself is the first rank's."""
    company = Company()
    if MPI.COMM_WORLD.rank > 0:
        company.follow()
        pytest.skip("the first rank conducts")
    yield company.run
    company.dismiss()


FLAGS = [
    "--participation.fraction=0.4",
    "--data.devices=5",
    "--wireless.on=true",
    "--link.average=gather",
    *SMALL,
]


def in_one_go_and_resumed(run, cwd: Path, *flags: str) -> tuple[Path, Path, str]:
    """Runs of six rounds, the second of which went on from its third with a rank less: the same
    bits. And what the first one said."""
    done = run(
        RANKS, "--run.name=a", "--training.rounds=6", "--checkpoint.every=3", *flags, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    whole, cut = cwd / "runs" / "a", cwd / "runs" / "b"
    copy_without_last_checkpoint(whole, cut)
    (cut / "generator.safetensors").unlink()
    resumed = run(RANKS - 1, "--resume", "runs/b", cwd=cwd)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(whole) == losses(cut) and len(losses(cut)) == 6
    assert generator(whole) == generator(cut)
    return whole, cut, done.stdout


@pytest.mark.parametrize(
    ("policy", "algorithm"),
    [
        ("importance", "ren"),
        ("importance", "fedgan"),
        ("proportional_fair", "ren"),
        ("best_channel", "mdgan"),
    ],
)
def test_a_run_resumes_bitwise_on_other_ranks(run, tmp_path, policy, algorithm):
    """Norms of updates and what devices have had of the channel come back; so do participants, and
    wireless seconds."""
    flags = [f"--participation.policy={policy}", f"--algorithm.name={algorithm}", *FLAGS]
    whole, cut, said = in_one_go_and_resumed(run, tmp_path, *flags)
    assert "devices took part in" in said and "(Jain); classes seen" in said
    rounds = [line for line in lines_but_for_time(whole) if "participants" in line]
    assert [line for line in lines_but_for_time(cut) if "participants" in line] == rounds
    assert all(line["wireless_seconds"] > 0 for line in rounds)
    assert len({tuple(line["participants"]) for line in rounds}) > 1
    assert (whole / "cell.png").exists()
    checkpoint = json.loads(
        (whole / "checkpoints" / "round_000003" / "checkpoint.json").read_text()
    )
    assert ("update_norms" in checkpoint["progress"]) == (policy == "importance")

    checkpoint["progress"]["update_norms"] = [1.0, -2.0, 0.0, 0.0, 0.0]
    shutil.rmtree(cut / "checkpoints" / "round_000006")
    (cut / "checkpoints" / "round_000003" / "checkpoint.json").write_text(json.dumps(checkpoint))
    done = run(RANKS - 1, "--resume", "runs/b", cwd=tmp_path)
    assert done.returncode == 1 and "checkpoint.json is damaged" in done.stderr


def test_measured_seconds_can_be_the_clocks(run, tmp_path):
    flags = ["--wireless.compute=measured", "--wireless.bandwidth_hz=1e15", *FLAGS[1:]]
    done = run(3, "--run.name=a", "--training.rounds=3", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rounds = [line for line in lines(tmp_path / "runs" / "a") if "participants" in line]
    # Nearly nothing is left of the radio.
    computed = [line["wireless_seconds"] - line["seconds_server"] for line in rounds]
    local = [line["seconds_local"] for line in rounds]
    # A rank's devices, three at most, work one after the other.
    for t in range(3):
        assert computed[t] < local[t] + 0.01
        assert local[t] < 3 * computed[t]


def test_no_work_falls_between_rounds(run, tmp_path):
    """Where the server draws a grid after each, devices do not begin the next meanwhile."""
    flags = ["--training.batch_size=512", "--training.generator_steps=1", "--training.rounds=6"]
    long = ["--data.devices=2", "--training.generator_batch_size=8", "--evaluation.every=0"]
    done = run(3, "--run.name=a", "--record.grid_every=1", *flags, *long, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rounds = [line for line in lines(tmp_path / "runs" / "a") if "participants" in line]
    assert len(rounds) == 6
    assert all(line["seconds_local"] <= line["seconds"] for line in rounds)


def test_a_list_of_rates_that_fits_no_devices_is_refused(run, tmp_path):
    flags = ["--wireless.device_macs_per_second=[1e9,2e9]", *FLAGS[1:]]
    done = run(3, *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "wireless.device_macs_per_second has 2 numbers, but must have one" in done.stderr
    assert "Traceback" not in done.stderr


CLASSES_AND_SWAPS = [
    "--algorithm.name=mdgan",
    "--model.conditional=true",
    "--participation.policy=balanced",
    "--participation.count=3",
    "--training.batch_size=192",  # a swap every other round
    *SMALL,
]


def test_a_conditional_run_with_swaps_resumes_bitwise_on_other_ranks(run, tmp_path):
    """Own discriminators, their swaps, balanced rounds and classes come back."""
    whole, _, _ = in_one_go_and_resumed(run, tmp_path, *CLASSES_AND_SWAPS)
    rounds = [line for line in lines(whole) if "seconds" in line]
    assert len({line["bytes_up"] for line in rounds}) == 2  # with a swap, and without

    from fedgan_mpi.run.generator_file import load

    trained = load(whole)
    sevens = trained(9, label=7, seed=1)
    assert not np.array_equal(sevens, trained(9, label=1, seed=1))
    assert np.array_equal(sevens, trained(9, label=7, seed=1))
    with pytest.raises(Exception, match="label is 10, but must be from 0 to 9"):
        trained(1, label=10)


def test_a_private_run_tells_what_it_spends(run, tmp_path):
    options = ["--algorithm.name=dp_fedavg_gan", "--algorithm.noise=2", "--algorithm.clip=0.01"]
    done = run(
        3, "--run.name", "a", "--training.rounds", "2", *options, *SMALL[:4],
        "--evaluation.every", "1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spent = [line["epsilon"] for line in lines(tmp_path / "runs" / "a") if "epsilon" in line]
    assert spent == sorted(spent) and spent[0] == 0 and spent[-1] > spent[3] > 0
    assert f"after 2 rounds ε = {spent[-1]:.4g} for a device" in done.stdout

    done = run(3, *options, "--algorithm.epsilon_budget=1", *SMALL, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("algorithm.epsilon_budget is 1, but 600 rounds") == 1
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["a"]  # nothing was written


NARROW = [
    "--link.wire_dtype=bfloat16",
    "--link.error_feedback=true",
    "--training.memory_format=channels_last",
    "--data.devices=5",
    "--participation.policy=round_robin",
    "--participation.count=3",
    *SMALL,
]


def test_a_narrow_run_resumes_bitwise_on_other_ranks_and_sends_what_it_announced(run, tmp_path):
    """Residuals of devices and server come back, and kernels that lie channels last."""
    options = NARROW
    if multiplies_bfloat16():
        options = [*NARROW, "--training.autocast=bfloat16"]
    whole, _, _ = in_one_go_and_resumed(run, tmp_path, *options)

    announced = run(1, "--dry-run", *options, cwd=tmp_path).stdout
    wide = run(1, "--dry-run", *SMALL, *options[3:6], cwd=tmp_path).stdout
    (line,) = [line for line in lines(whole) if line.get("round") == 2 and "bytes_up" in line]
    for way, key in (("down", "bytes_down"), ("up", "bytes_up")):
        number = re.compile(rf"bytes {way} a round +([\d,]+)")
        narrow, full = (int(number.search(t)[1].replace(",", "")) for t in (announced, wide))
        assert line[key] == narrow == full // 2 > 0

    done = run(RANKS - 1, "--resume", "runs/b", "--link.wire_dtype", "float16", cwd=tmp_path)
    assert done.returncode == 1
    assert "link.wire_dtype is 'float16', but must be 'bfloat16' as in" in done.stderr


def test_patience_ends_a_run_after_scores_that_are_no_better(run, tmp_path):
    """Learning rates at which nothing can get better."""
    options = ["--evaluation.every=1", "--evaluation.patience=2", "--training.generator_lr=1e-30"]
    options += ["--model.ema=0", "--training.rounds=30", "--run.name=a", *SMALL[:4]]
    done = run(3, *options, "--model.initialization=dcgan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "a"
    played = [line for line in lines(directory) if "metric" not in line]
    assert 3 <= len(played) < 25
    assert f"so training ends after round {len(played)}" in done.stdout
    last = f"round_{len(played):06d}"
    assert (directory / "checkpoints" / last).is_dir()
    assert [line["round"] for line in lines(directory) if "metric" in line][-1] == len(played)
    before = (directory / "stats.jsonl").read_bytes()
    done = run(3, "--resume", "runs/a", cwd=tmp_path)  # as a resubmitted script does
    assert done.returncode == 0, done.stderr
    assert (directory / "stats.jsonl").read_bytes() == before


def test_the_best_checkpoint_and_the_clock(run, tmp_path):
    done = run(
        2, "--run.name", "a", *SMALL, "--training.rounds", "12", "--evaluation.every", "3",
        "--checkpoint.every", "0", "--checkpoint.keep_last", "1", "--checkpoint.keep_best", "true",
        "--training.generator_lr", "1.0", "--model.ema", "0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "runs/a/generator_best.json").read_text())["round"]
    names = [path.name for path in checkpoints_of(tmp_path / "runs" / "a")]
    assert names == sorted({f"round_{best:06d}", "round_000012"}) and best < 12
    done = run(
        2, "--run.name", "b", *SMALL, "--training.rounds", "3", "--evaluation.every", "0",
        "--checkpoint.every", "0", "--checkpoint.minutes", "1e-6", "--checkpoint.keep_last", "9",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [path.name for path in checkpoints_of(tmp_path / "runs" / "b")]
    assert names == [f"round_{t:06d}" for t in (0, 1, 2, 3)]


def test_centralized_trains_in_one_process_and_in_company(run, tmp_path):
    options = ["--algorithm.name=centralized", "--training.rounds=3", "--checkpoint.every=0"]
    options += [*SMALL, "--link.average=gather"]
    for ranks, name in ((1, "one"), (3, "three")):
        done = run(ranks, "--run.name", name, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, three = (tmp_path / "runs" / name for name in ("one", "three"))
    assert losses(one) == losses(three) and generator(one) == generator(three)
    assert lines(one)[-1]["metric"] == "class_total_variation"
    assert all(
        line["bytes_down"] == line["bytes_up"] == 0 for line in lines(one) if "seconds" in line
    )
