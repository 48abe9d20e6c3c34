"""Jobs with a mistake: one rank prints one sentence, no file is written, the status is not 0."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgan_mpi.hardware.cpu import multiplies_bfloat16
from fedgan_mpi.testing.jobs import ENVIRONMENT, run_job

pytestmark = pytest.mark.jobs


def truncate_shard(shards: Path) -> None:
    path = shards / "device_0002.h5"
    path.write_bytes(path.read_bytes()[:-200])


def remove_shard(shards: Path) -> None:
    (shards / "device_0003.h5").unlink()


def swap_shards(shards: Path) -> None:
    shutil.copy(shards / "device_0001.h5", shards / "device_0002.h5")


def edit_shard(name: str, edit: Callable[[Any], None]) -> Callable[[Path], None]:
    """Return a function that opens a shard with h5py and edits it."""

    def act(shards: Path) -> None:
        import h5py

        with h5py.File(shards / name, "r+") as file:
            edit(file)

    return act


def use_float_images(file: Any) -> None:
    del file["images"]
    file["images"] = np.zeros((6, 1, 16, 16), np.float32)


def use_wide_images(file: Any) -> None:
    del file["images"]
    file["images"] = np.zeros((6, 1, 16, 17), np.uint8)


def name_missing_extractor(shards: Path) -> None:
    manifest = json.loads((shards / "shards.json").read_text())
    manifest |= {"features": "features.safetensors", "features_sha256": "0" * 64}
    (shards / "shards.json").write_text(json.dumps(manifest))


def replace_extractor(shards: Path) -> None:
    name_missing_extractor(shards)
    (shards / "features.safetensors").write_bytes(b"another")


def make_run_directory(cwd: Path) -> None:
    (cwd / "runs" / "a").mkdir(parents=True)


def make_file_named_runs(cwd: Path) -> None:
    (cwd / "runs").write_text("a file")


# Ranks, flags, a change of the shards or else of the working directory, part of the message.
# SHARDS is replaced by the flags that name the unlabelled shards.
MISTAKES: dict[str, tuple[int, list[str], Callable[[Path], None] | None, str]] = {
    "unknown flag": (2, ["--training.rouns", "3"], None, "unknown flag --training.rouns"),
    "wrong type": (2, ["--training.rounds", "x"], None, "training.rounds is x"),
    "no rounds": (2, ["--training.rounds", "0"], None, "training.rounds is 0"),
    "too many ranks": (5, ["SHARDS"], None, "there are 4 device ranks for 3 devices"),
    "too many participants": (
        2,
        ["SHARDS", "--participation.policy", "random", "--participation.count", "4"],
        None,
        "participation.count is 4, but must be at most 3",
    ),
    "no shards": (2, ["--data.shards", "nowhere"], None, "nowhere/shards.json cannot be read"),
    "missing shard": (4, ["SHARDS"], remove_shard, "device_0003.h5 is missing"),
    "truncated shard": (4, ["SHARDS"], truncate_shard, "device_0002.h5 is truncated"),
    "dtype of a shard": (
        4,
        ["SHARDS"],
        edit_shard("device_0002.h5", use_float_images),
        "float32, but must be",
    ),
    "shape of a shard": (
        4,
        ["SHARDS"],
        edit_shard("device_0003.h5", use_wide_images),
        "must be N×1×16×16",
    ),
    "version of a shard": (
        4,
        ["SHARDS"],
        edit_shard("device_0001.h5", lambda file: file.attrs.__setitem__("format_version", 7)),
        "device_0001.h5 has format_version 7",
    ),
    "shard of another device": (
        4,
        ["SHARDS"],
        swap_shards,
        "device_0002.h5 is not the shard of device 2",
    ),
    "size of images": (
        2,
        ["SHARDS", "--model.size", "32"],
        None,
        "model.size is 32, but the images",
    ),
    "no held-out file": (2, ["SHARDS", "--data.heldout", "no.h5"], None, "no.h5 is missing"),
    "existing run": (2, ["--run.name", "a"], make_run_directory, "runs/a exists already"),
    "unwritable run": (
        2,
        ["--run.name", "a"],
        make_file_named_runs,
        "run directory runs/a cannot be created",
    ),
    "too many samples": (
        2,
        ["--evaluation.samples", "1000"],
        None,
        "evaluation.samples is 1000, but the digits' held-out part holds 359",
    ),
    "no Inception file": (
        2,
        ["--evaluation.inception_weights", "no.pth"],
        None,
        "evaluation.inception_weights: no.pth cannot be read",
    ),
    "no held-out digits": (2, ["--data.heldout", "no.h5"], None, "no.h5 is missing"),
    "changed extractor": (
        2,
        ["SHARDS"],
        replace_extractor,
        "features.safetensors is not the extractor that shards.json describes",
    ),
    "no extractor": (
        2,
        ["SHARDS"],
        name_missing_extractor,
        "features.safetensors cannot be read",
    ),
    "cuda route": (2, ["--link.route", "cuda"], None, "link.route is 'cuda'"),
    "cuda device": (2, ["--training.device", "cuda"], None, "training.device is 'cuda'"),
    "cuda graphs": (
        2,
        ["--training.graphs", "on"],
        None,
        "training.graphs is 'on', but this machine has no GPU",
    ),
}
QUICK = ("unknown flag", "truncated shard", "existing run")


@pytest.mark.parametrize(
    ("ranks", "flags", "change", "message"),
    [
        pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in MISTAKES.items()
    ],
)
def test_a_mistake_is_one_sentence_from_one_rank(
    ranks, flags, change, message, unlabelled_shards, tmp_path
):
    from fedgan_mpi.hardware.gpu import gpu_count

    if "cuda" in message and gpu_count():
        pytest.skip("this machine has a GPU")
    if "SHARDS" in flags:
        shutil.copytree(unlabelled_shards, tmp_path / "shards")
        flags = ["--data.shards", "shards", *flags[1:]]
        if change is not None:
            change(tmp_path / "shards")
    elif change is not None:
        change(tmp_path)
    before = set(tmp_path.rglob("*"))
    start = time.monotonic()
    done = run_job(ranks, *flags, cwd=tmp_path, forked=False)
    assert time.monotonic() - start < 60
    assert done.returncode != 0
    printed = [line for line in done.stderr.splitlines() if message in line]
    assert len(printed) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert set(tmp_path.rglob("*")) == before
    assert not done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(multiplies_bfloat16(), reason="this CPU multiplies bfloat16")
def test_bfloat16_is_refused_on_a_cpu_that_emulates_it(tmp_path):
    done = run_job(2, "--training.autocast", "bfloat16", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("this CPU has neither avx512_bf16 nor AMX") == 1


@pytest.mark.slow
def test_a_world_smaller_than_the_launchers_is_refused(tmp_path):
    """Without the right --mpi, srun starts N worlds of one rank, and each would train alone."""
    printed = []
    for rank in range(4):
        environment = {**ENVIRONMENT, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": str(rank)}
        done = subprocess.run(
            [sys.executable, "-m", "fedgan_mpi"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode != 0
        printed.append(done.stderr.strip())
    assert "the launcher started 4 ranks, but MPI sees a world of 1" in printed[0]
    assert printed[1:] == ["", "", ""]
