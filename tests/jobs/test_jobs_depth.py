"""Whole jobs on deep and rectangular images, and on images of other channels than 1 or 3."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main as data_prep
from fedgan_mpi.data import Manifest
from fedgan_mpi.testing.jobs import run_job
from fedgan_mpi.testing.runs import stats_lines

pytestmark = [pytest.mark.jobs, pytest.mark.slow]


def gradients(channels: int) -> np.ndarray:
    """Return 40 images of 12 bits, 48×64 pixels, each a slope in a direction of its own."""
    y, x = np.mgrid[:48, :64] / 63
    angle = np.linspace(0, np.pi, 40)[:, None, None, None] + np.arange(channels)
    slope = np.cos(angle) * x[..., None] + np.sin(angle) * y[..., None]
    scaled = (slope - slope.min()) / (slope.max() - slope.min())
    return np.rint(scaled * 4095).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 5])
def test_deep_rectangular_images_from_data_prep_to_samples(tmp_path, channels):
    np.savez(tmp_path / "slopes.npz", train_images=gradients(channels).squeeze())
    source, out = str(tmp_path / "slopes.npz"), str(tmp_path / "shards")
    command = ["npz", "--source", source, "--out", out, "--devices", "3", "--depth", "16"]
    assert data_prep(command) == 0
    manifest = Manifest.read(Path(out))
    assert (manifest.image_shape, manifest.dtype) == ((channels, 48, 64), "uint16")

    flags = ["--run.name=a", "--data.shards=shards", "--training.rounds=4", "--model.width=4"]
    flags += ["--evaluation.every=2", "--record.grid_every=2", "--checkpoint.every=2"]
    done = run_job(3, *flags, "--record.tensorboard=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "a"
    assert not (run / "tensorboard").exists() or "was not written" not in done.stdout
    scores = [line for line in stats_lines(run) if line.get("metric", "").startswith("frechet")]
    assert len(scores) == 3 and scores[0]["metric"].startswith("frechet_pca_distance")
    assert all(line["value"] > line["floor"] for line in scores)
    about = json.loads((run / "generator.json").read_text())
    assert about["dtype"] == "uint16" and about["range"] == [0, 4095]
    with Image.open(run / "samples" / "round_000004.png") as picture:
        assert picture.mode == "I;16"  # panels of gray, whatever the number of channels
    assert (run / "training.gif").exists() and (run / "report.html").exists()

    for arguments in (["evaluate", "runs/a"], ["memorization", "runs/a", "--show-images"]):
        done = run_job(2, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    lines = (run / "evaluation.jsonl").read_text().splitlines()
    final = [json.loads(line) for line in lines if '"generator": "generator.safe' in line]
    assert final[0]["value"] == pytest.approx(scores[-1]["value"], rel=1e-6)
    with Image.open(run / "memorization.png") as picture:
        assert picture.mode == "I;16"

    done = run_job(1, "sample", "runs/a", "--out", "a.npz", "--count", "9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "a.npz") as arrays:
        images = arrays["images"]
    assert images.dtype == np.uint16 and images.shape == (9, 48, 64, channels)
    assert (images % 257 != 0).any()  # more than 8 bits
    done = run_job(1, "export", "runs/a", "--format", "torchexport", cwd=tmp_path)
    assert done.returncode == 0 and "generates the same images" in done.stdout, done.stderr
