"""If a report, film, grid or last line fails, the run still writes its generator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedgan_mpi
from fedgan_mpi.data import Manifest, write_shard
from fedgan_mpi.report import page
from fedgan_mpi.run import image_grids
from fedgan_mpi.testing.runs import stats_lines
from fedgan_mpi.training import artifacts

CONFIG = {
    "model": {"width": 4, "nz": 8},
    "evaluation": {"every": 1, "samples": 32},
    "training": {"rounds": 1},
    "data": {"devices": 2},
}


def train(directory: Path, **sections):
    return fedgan_mpi.train({**CONFIG, "run": {"directory": str(directory)}, **sections})


def fail(*_, **__):
    raise RuntimeError("lost")


@pytest.mark.parametrize(
    ("module", "name", "lost"),
    [
        (page, "write_report", ["report.html"]),
        (artifacts, "write_animation", ["training.gif"]),
        (image_grids, "grid", ["samples/round_000000.png", "samples/round_000001.png"]),
    ],
    ids=["report", "film", "grid"],
)
def test_a_decoration_that_fails_is_named(tmp_path, monkeypatch, capsys, module, name, lost):
    monkeypatch.setattr(module, name, fail)
    result = train(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    for path in lost:
        assert f"{result.path / path} was not written: RuntimeError: lost" in lines
        assert not (result.path / path).exists()
    assert lines[-1] == str(result.path) and result.exit_status == 0
    assert result.generator(2).shape == (2, 1, 16, 16)
    assert not [path.name for path in result.path.rglob(".*.tmp")]


def test_a_file_in_the_place_of_each_decoration_is_named(tmp_path, capsys):
    class Block(fedgan_mpi.callbacks.Callback):
        def on_run_begin(self, run, done):
            for name in ("report.html", "training.gif", "samples/round_000001.png"):
                (run / name).mkdir()

    config = {**CONFIG, "run": {"directory": str(tmp_path)}}
    result = fedgan_mpi.train(config, callbacks=[Block()])
    out = capsys.readouterr().out
    reason = "it is a directory, but must be a regular file"
    for name in ("report.html", "training.gif", "samples/round_000001.png"):
        path = result.path / name
        assert out.count(f"{path} was not written: {reason}\n") == 1, out
    assert result.generator(2).shape == (2, 1, 16, 16)


def test_names_of_classes_may_be_anything(tmp_path):
    """Folders of images may have names that are not UTF-8."""
    shards, names = tmp_path / "shards", ["b\udcffrd", "$x^"]
    shards.mkdir()
    labels, hashes = np.arange(6) % 2, []
    for device in (1, 2):
        images = np.full((6, 1, 16, 16), 100 * device, np.uint8)
        path = shards / f"device_{device:04d}.h5"
        hashes.append(write_shard(path, images, labels, labels, {"device": device}))
    Manifest(
        format_version=1, dataset="toy", image_shape=(1, 16, 16), class_names=names,
        partition={"name": "iid"}, seed=0, devices=2, images=[6, 6], histograms=[[3, 3], [3, 3]],
        pixels_sha256=hashes, sha256="x", heldout=None, heldout_images=0, features=None,
    ).write(shards)  # fmt: skip
    model = {**CONFIG["model"], "conditional": True}
    result = train(tmp_path / "runs", data={"shards": str(shards)}, model=model)
    assert "b\\udcffrd" in (result.path / "report.html").read_text()
    assert result.generator.class_names == names


@pytest.mark.parametrize("output", ["pipe", "/dev/full"])
def test_a_program_trains_in_a_hostile_environment(tmp_path, output):
    """The backend of a notebook, an encoding without umlauts, and a full disk behind the output."""
    environment = {
        **os.environ, "MPLBACKEND": "module://no_such_notebook", "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    if output != "pipe":
        environment["MPLBACKEND"] = "no_such_backend"
    cwd = tmp_path / "wörk"
    cwd.mkdir()
    flags = ["--run.directory", "rüns", "--training.rounds", "1", "--data.devices", "2"]
    flags += ["--model.width", "4", "--model.nz", "8", "--evaluation.samples", "32"]
    with open(os.devnull if output == "pipe" else output, "wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "fedgan_mpi", *flags], cwd=cwd, env=environment, timeout=200,
            stdout=subprocess.PIPE if output == "pipe" else file,
            stderr=subprocess.PIPE if output == "pipe" else file,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (cwd / "rüns").iterdir()
    for name in ("generator.safetensors", "report.html", "losses.png", "training.gif"):
        assert (run / name).exists(), (name, done.stdout)
    assert json.loads((run / "generator.json").read_text())["round"] == 1
    assert len([line for line in stats_lines(run) if "d_loss" in line]) == 1
    if output == "pipe":
        assert b"was not written" not in done.stdout and b"Traceback" not in done.stderr
        assert done.stdout.splitlines()[-1] == f"r\\xfcns/{run.name}".encode()
