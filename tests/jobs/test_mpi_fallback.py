"""A resume skips damaged checkpoints, whichever rank finds the damage, with the same result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from in_process_jobs import RANKS
from safetensors.torch import load_file, save_file

from fedgan_mpi.checkpoint.format import checkpoints_of, fingerprint
from fedgan_mpi.testing.jobs import SMALL
from fedgan_mpi.testing.mutations import write_manifest
from fedgan_mpi.testing.runs import generator_bytes, losses

pytestmark = pytest.mark.mpi(min_size=3)

FLAGS = [
    "--run.name=a", "--training.rounds=3", "--checkpoint.every=1", "--checkpoint.keep_last=3",
    "--evaluation.every=0", "--data.devices=3", *SMALL,
]  # fmt: skip


def read_table(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "checkpoint.json").read_text())


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_progress(checkpoint: Path) -> None:
    """Change a number by hand, to another one that is plausible."""
    table = read_table(checkpoint)
    table["progress"]["images_seen"] += 1
    (checkpoint / "checkpoint.json").write_text(json.dumps(table))


def end_progress(checkpoint: Path) -> None:
    """Write a training state that only the server's reader of it can refuse."""
    table = read_table(checkpoint)
    table["progress"]["images_seen"] = "many"
    write_manifest(checkpoint, table)


def replace_tensor(name: str, key: str, value: torch.Tensor) -> Callable[[Path], None]:
    """Return a damage with hashes that fit, which only the owner of the state can notice."""

    def change(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / name)
        tensors[key] = value
        save_file(tensors, checkpoint / name)
        table = read_table(checkpoint)
        table["files"][name] = fingerprint((checkpoint / name).read_bytes())
        write_manifest(checkpoint, table)

    return change


BAD_STREAM = torch.full((5056,), 255, dtype=torch.uint8)
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "manifest changed by hand": (change_progress, "checkpoint.json is damaged or was changed"),
    "manifest missing": (lambda c: (c / "checkpoint.json").unlink(), "json is missing or damaged"),
    "invalid training state": (end_progress, "checkpoint.json is damaged"),
    "server's file": (lambda c: flip_bit(c / "server.safetensors"), "server.safetensors is not"),
    "last device's file": (lambda c: flip_bit(c / "device_0003.safetensors"), "0003.safetensors"),
    "missing file": (lambda c: (c / "device_0002.safetensors").unlink(), "0002.safetensors cannot"),
    "longer file": (
        lambda c: (c / "device_0001.safetensors").open("ab").write(b"1"),
        "device_0001.safetensors is not what",
    ),
    "another vector": (
        replace_tensor("server.safetensors", "vector", torch.zeros(3)),
        "does not hold the states of this run",
    ),
    "invalid random stream": (
        replace_tensor("device_0003.safetensors", "noise_stream", BAD_STREAM),
        "does not hold the states of this run",
    ),
}


def test_a_resume_skips_damaged_checkpoints(run, tmp_path):
    assert run(RANKS, *FLAGS, cwd=tmp_path).returncode == 0
    finished = tmp_path / "runs" / "a"
    copy = tmp_path / "copy" / "runs" / "a"
    for case, (damage, reason) in DAMAGES.items():
        shutil.copytree(finished, copy)
        (copy / "generator.safetensors").unlink()
        damage(checkpoints_of(copy)[-1])
        flip_bit(checkpoints_of(copy)[-2] / "server.safetensors")
        resumed = run(RANKS, "--resume", "runs/a", cwd=tmp_path / "copy")
        assert resumed.returncode == 0, (case, resumed.stderr)
        warnings = [line for line in resumed.stderr.splitlines() if "previous checkpoint" in line]
        assert len(warnings) == 2 and "round_000003" in warnings[0], (case, resumed.stderr)
        assert reason in warnings[0] and "round_000002" in warnings[1], (case, warnings)
        assert losses(copy) == losses(finished), case
        assert generator_bytes(copy) == generator_bytes(finished), case
        assert [path.name for path in checkpoints_of(copy)] == [f"round_{t:06d}" for t in (1, 2, 3)]
        shutil.rmtree(copy)


def test_a_checkpoint_from_before_the_checksum_resumes(run, tmp_path):
    assert run(RANKS, *FLAGS, cwd=tmp_path).returncode == 0
    finished, copy = tmp_path / "runs" / "a", tmp_path / "copy" / "runs" / "a"
    shutil.copytree(finished, copy)
    last, previous, _ = reversed(checkpoints_of(copy))
    shutil.rmtree(last)
    table = read_table(previous)
    assert table.pop("sha256") and table["format"] == 3
    (previous / "checkpoint.json").write_text(json.dumps({**table, "format": 2}))
    resumed = run(RANKS, "--resume", "runs/a", cwd=tmp_path / "copy")
    assert resumed.returncode == 0 and "previous checkpoint" not in resumed.stderr, resumed.stderr
    assert generator_bytes(copy) == generator_bytes(finished)


def test_another_experiment_is_refused_and_not_resumed_from_an_older_checkpoint(run, tmp_path):
    assert run(RANKS, *FLAGS, cwd=tmp_path).returncode == 0
    config = tmp_path / "runs" / "a" / "config.toml"
    config.write_text(config.read_text().replace("seed = 0\n", "seed = 1\n", 1))
    resumed = run(RANKS, "--resume", "runs/a", cwd=tmp_path)
    assert resumed.returncode == 1 and "previous checkpoint" not in resumed.stderr
    assert "run.seed is 1, but must be 0 as in runs/a/checkpoints/round_000003" in resumed.stderr
