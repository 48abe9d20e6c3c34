"""Whole jobs with other algorithms, participation policies, wire types and scores than the default.

Most of them are also resumed with one rank less, to the same bits.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process_jobs import RANKS

from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config.io import read_provenance
from fedgan_mpi.hardware.cpu import multiplies_bfloat16
from fedgan_mpi.testing.jobs import SMALL, SMALL_NETWORKS
from fedgan_mpi.testing.mutations import write_manifest
from fedgan_mpi.testing.runs import (
    copy_without_last_checkpoint,
    generator_bytes,
    losses,
    stats_lines,
    stats_without_seconds,
)

pytestmark = pytest.mark.mpi(min_size=3)


FLAGS = [
    "--participation.fraction=0.4",
    "--data.devices=5",
    "--wireless.on=true",
    "--link.average=gather",
    *SMALL,
]


def run_and_resume(run, cwd: Path, *flags: str) -> tuple[Path, Path, str]:
    """Run six rounds, and resume a copy after round 3 with one rank less. Assert the same bits.

    Returns both run directories and the output of the first job.
    """
    done = run(
        RANKS, "--run.name=a", "--training.rounds=6", "--checkpoint.every=3", *flags, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    finished_run, resumed_run = cwd / "runs" / "a", cwd / "runs" / "b"
    copy_without_last_checkpoint(finished_run, resumed_run)
    (resumed_run / "generator.safetensors").unlink()
    resumed = run(RANKS - 1, "--resume", "runs/b", cwd=cwd)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(finished_run) == losses(resumed_run) and len(losses(resumed_run)) == 6
    assert generator_bytes(finished_run) == generator_bytes(resumed_run)
    return finished_run, resumed_run, done.stdout


@pytest.mark.parametrize(
    ("policy", "algorithm"),
    [
        ("importance", "ren"),
        pytest.param("importance", "fedgan", marks=pytest.mark.slow),
        pytest.param("proportional_fair", "ren", marks=pytest.mark.slow),
        pytest.param("best_channel", "mdgan", marks=pytest.mark.slow),
    ],
)
def test_participation_resumes_bitwise_on_fewer_ranks(run, tmp_path, policy, algorithm):
    """The checkpoint restores update norms and mean channel rates. The participants and the
    wireless seconds are the same."""
    flags = [f"--participation.policy={policy}", f"--algorithm.name={algorithm}", *FLAGS]
    finished_run, resumed_run, output = run_and_resume(run, tmp_path, *flags)
    assert "Participation: " in output and "Class balance seen in training" in output
    rounds = [line for line in stats_without_seconds(finished_run) if "participants" in line]
    assert [line for line in stats_without_seconds(resumed_run) if "participants" in line] == rounds
    assert all(line["wireless_seconds"] > 0 for line in rounds)
    assert len({tuple(line["participants"]) for line in rounds}) > 1
    assert (finished_run / "cell.png").exists()
    manifest = Path("checkpoints") / "round_000003" / "checkpoint.json"
    checkpoint = json.loads((finished_run / manifest).read_text())
    assert ("update_norms" in checkpoint["progress"]) == (policy == "importance")

    checkpoint["progress"]["update_norms"] = [1.0, -2.0, 0.0, 0.0, 0.0]
    shutil.rmtree(resumed_run / "checkpoints" / "round_000006")
    write_manifest(resumed_run / manifest.parent, checkpoint)
    done = run(RANKS - 1, "--resume", "runs/b", cwd=tmp_path)
    assert done.returncode == 1 and "checkpoint.json is damaged" in done.stderr


@pytest.mark.slow
def test_the_wireless_clock_can_use_measured_seconds(run, tmp_path):
    flags = ["--wireless.compute=measured", "--wireless.bandwidth_hz=1e15", *FLAGS[1:]]
    done = run(3, "--run.name=a", "--training.rounds=3", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rounds = [line for line in stats_lines(tmp_path / "runs" / "a") if "participants" in line]
    # At this bandwidth, transmission takes almost no time.
    computed = [line["wireless_seconds"] - line["seconds_server"] for line in rounds]
    local = [line["seconds_local"] for line in rounds]
    # A rank runs its devices, three at most, one after the other.
    for t in range(3):
        assert computed[t] < local[t] + 0.01
        assert local[t] < 3 * computed[t]


@pytest.mark.slow
def test_local_seconds_never_exceed_the_round(run, tmp_path):
    """Devices do not start the next round while the server draws a grid: that time is in no
    round."""
    flags = ["--training.batch_size=512", "--training.generator_steps=1", "--training.rounds=6"]
    long = ["--data.devices=2", "--training.generator_batch_size=8", "--evaluation.every=0"]
    done = run(3, "--run.name=a", "--record.grid_every=1", *flags, *long, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rounds = [line for line in stats_lines(tmp_path / "runs" / "a") if "participants" in line]
    assert len(rounds) == 6
    assert all(line["seconds_local"] <= line["seconds"] for line in rounds)


def test_rates_for_another_number_of_devices_are_refused(run, tmp_path):
    flags = ["--wireless.device_macs_per_second=[1e9,2e9]", *FLAGS[1:]]
    done = run(3, *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "wireless.device_macs_per_second has 2 values, but must have one" in done.stderr
    assert "Traceback" not in done.stderr


CLASSES_AND_SWAPS = [
    "--algorithm.name=mdgan",
    "--model.conditional=true",
    "--participation.policy=balanced",
    "--participation.count=3",
    "--training.batch_size=192",  # the discriminators swap every second round
    *SMALL,
]


@pytest.mark.slow
def test_a_conditional_run_with_swaps_resumes_bitwise_on_fewer_ranks(run, tmp_path):
    """The checkpoint restores each device's discriminator, the swaps and the balanced policy."""
    finished_run, _, _ = run_and_resume(run, tmp_path, *CLASSES_AND_SWAPS)
    rounds = [line for line in stats_lines(finished_run) if "seconds" in line]
    assert len({line["bytes_up"] for line in rounds}) == 2  # with a swap, and without

    from fedgan_mpi.run.generator_file import load

    trained = load(finished_run)
    sevens = trained(9, label=7, seed=1)
    assert not np.array_equal(sevens, trained(9, label=1, seed=1))
    assert np.array_equal(sevens, trained(9, label=7, seed=1))
    with pytest.raises(Exception, match="label is 10, but must be from 0 to 9"):
        trained(1, label=10)


def test_a_private_run_reports_epsilon(run, tmp_path):
    options = ["--algorithm.name=dp_fedavg_gan", "--algorithm.noise=2", "--algorithm.clip=0.01"]
    done = run(
        3, "--run.name", "a", "--training.rounds", "2", *options, *SMALL_NETWORKS,
        "--evaluation.every", "1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spent = [line["epsilon"] for line in stats_lines(tmp_path / "runs" / "a") if "epsilon" in line]
    assert spent == sorted(spent) and spent[0] == 0 and spent[-1] > spent[3] > 0
    assert f"after 2 rounds ε = {spent[-1]:.4g} for a device" in done.stdout

    done = run(3, *options, "--algorithm.epsilon_budget=1", *SMALL, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("algorithm.epsilon_budget is 1, but 600 rounds") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


SIXTEEN_BITS = [
    "--link.wire_dtype=bfloat16",
    "--link.error_feedback=true",
    "--training.memory_format=channels_last",
    "--data.devices=5",
    "--participation.policy=round_robin",
    "--participation.count=3",
    *SMALL,
]


@pytest.mark.slow
def test_a_16_bit_run_resumes_bitwise_and_sends_the_planned_bytes(run, tmp_path):
    """The checkpoint restores error-feedback residuals, also with channels_last networks."""
    options = SIXTEEN_BITS
    if multiplies_bfloat16():
        options = [*SIXTEEN_BITS, "--training.autocast=bfloat16"]
    finished_run, _, _ = run_and_resume(run, tmp_path, *options)

    plan_16 = run(1, "--dry-run", *options, cwd=tmp_path).stdout
    plan_32 = run(1, "--dry-run", *SMALL, *options[3:6], cwd=tmp_path).stdout
    rounds = [line for line in stats_lines(finished_run) if "bytes_up" in line]
    (line,) = [line for line in rounds if line["round"] == 2]
    for direction, key in (("down", "bytes_down"), ("up", "bytes_up")):
        number = re.compile(rf"bytes {direction} per round +([\d,]+)")
        planned, full = (int(number.search(t)[1].replace(",", "")) for t in (plan_16, plan_32))
        assert line[key] == planned == full // 2 > 0

    done = run(RANKS - 1, "--resume", "runs/b", "--link.wire_dtype", "float16", cwd=tmp_path)
    assert done.returncode == 1
    assert "link.wire_dtype is 'float16', but must be 'bfloat16' as in" in done.stderr


@pytest.mark.slow
def test_patience_ends_a_run_without_better_scores(run, tmp_path):
    """At these learning rates no score improves."""
    options = ["--evaluation.every=1", "--evaluation.patience=2", "--training.generator_lr=1e-30"]
    options += ["--model.ema=0", "--training.rounds=30", "--run.name=a", *SMALL_NETWORKS]
    done = run(3, *options, "--model.initialization=dcgan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / "a"
    rounds = [line for line in stats_lines(directory) if "metric" not in line]
    assert 3 <= len(rounds) < 25
    assert f"Training ends after round {len(rounds)}: evaluation.patience is 2" in done.stdout
    last = f"round_{len(rounds):06d}"
    assert (directory / "checkpoints" / last).is_dir()
    scored = [line["round"] for line in stats_lines(directory) if "metric" in line]
    assert scored[-1] == len(rounds)
    before = (directory / "stats.jsonl").read_bytes()
    done = run(3, "--resume", "runs/a", cwd=tmp_path)  # as a batch script that is submitted again
    assert done.returncode == 0, done.stderr
    assert (directory / "stats.jsonl").read_bytes() == before


@pytest.mark.slow
def test_keep_best_and_checkpoints_by_minutes(run, tmp_path):
    done = run(
        2, "--run.name", "a", *SMALL, "--training.rounds", "12", "--evaluation.every", "3",
        "--checkpoint.every", "0", "--checkpoint.keep_last", "1", "--checkpoint.keep_best", "true",
        "--training.generator_lr", "10.0", "--model.ema", "0", cwd=tmp_path,
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


@pytest.mark.slow
def test_centralized_is_equal_on_one_and_three_ranks(run, tmp_path):
    options = ["--algorithm.name=centralized", "--training.rounds=3", "--checkpoint.every=0"]
    options += [*SMALL, "--link.average=gather"]
    for ranks, name in ((1, "one"), (3, "three")):
        done = run(ranks, "--run.name", name, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, three = (tmp_path / "runs" / name for name in ("one", "three"))
    assert losses(one) == losses(three) and generator_bytes(one) == generator_bytes(three)
    assert stats_lines(one)[-1]["metric"] == "class_total_variation"
    rounds = [line for line in stats_lines(one) if "seconds" in line]
    assert all(line["bytes_down"] == line["bytes_up"] == 0 for line in rounds)


def test_a_round_sends_no_table_of_checkpoint_files(run, tmp_path, monkeypatch):
    """The table has nine numbers a device. Ranks add it once a checkpoint, not once a round."""
    sizes, add = [], Link.sum

    def count(link, numbers, **named):
        sizes.append(numbers.size)
        return add(link, numbers, **named)

    monkeypatch.setattr(Link, "sum", count)
    flags = ["--training.rounds=6", "--checkpoint.every=2", "--data.devices=5", *SMALL]
    done = run(RANKS, *flags, "--run.name=a", "--checkpoint.keep_last=9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files, checkpoints = 5 + 1, checkpoints_of(tmp_path / "runs" / "a")
    assert sizes.count(9 * files) == len(checkpoints) >= 3
    assert sizes.count(7 * files + 11 * RANKS + 6) == 6  # metrics and flags of six rounds
    (placement,) = read_provenance(tmp_path / "runs" / "a")["placement"]  # all ranks have one table
    assert (placement["ranks"], placement["device"]) == (f"0-{RANKS - 1}", "cpu")
    assert placement["mpi"] == Link.library() and placement["route"].startswith("host")


def test_each_rank_writes_a_trace_of_the_profiled_rounds(run, tmp_path):
    flags = ["--data.devices=3", "--training.rounds=8", "--record.profile=2", *SMALL]
    done = run(RANKS, *flags, "--run.name=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    profile = tmp_path / "runs" / "a" / "profile"
    assert f"Rounds 6 to 7 are traced in {profile.relative_to(tmp_path)}." in done.stdout
    names = [f"round_000006_rank_{rank:04d}.json.gz" for rank in range(RANKS)]
    assert sorted(path.name for path in profile.iterdir()) == names
    for rank, name in enumerate(names):
        events = json.loads(gzip.decompress((profile / name).read_bytes()))["traceEvents"]
        spans = [each["name"] for each in events if each.get("cat") == "user_annotation"]
        assert spans.count("round") == spans.count("average") == 2
        assert ("fake_half" in spans) == (rank > 0) and ("generator_step" in spans) == (rank == 0)
    lines = [line for line in stats_lines(tmp_path / "runs" / "a") if "d_loss" in line]
    peaks = [line["peak_bytes_host"] for line in lines]
    assert peaks[0] > 2**25 and peaks == sorted(peaks) and "peak_bytes_gpu" not in lines[0]


def test_a_profile_longer_than_the_run_is_one_sentence(run, tmp_path):
    done = run(2, "--training.rounds=6", "--record.profile=2", *SMALL, cwd=tmp_path)
    sentence = "record.profile is 2, but must be at most 1 when training.rounds is 6: the first 5 "
    assert done.returncode != 0 and sentence in done.stderr
