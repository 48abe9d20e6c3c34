"""What shards cannot serve is told before torch is imported; in one process, without MPI ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.cli.commands import parse
from fedgan_mpi.cli.parser import Train
from fedgan_mpi.data import Manifest
from fedgan_mpi.data.loading import check_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.training.preflight import check_manifest


def test_mistakes_are_told_before_torch_is_imported():
    """Nine ranks that import it on two cores take many seconds."""
    code = (
        "import sys; import fedgan_mpi.cli.commands, fedgan_mpi.training.setup; "
        "print(sorted({'torch', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def manifest(size: int = 32, labels: bool = True) -> Manifest:
    return Manifest(
        format_version=1,
        dataset="toy",
        image_shape=(1, size, size),
        class_names=["a", "b"] if labels else [],
        partition={"name": "iid"},
        seed=0,
        devices=3,
        images=[6, 6, 6],
        histograms=[[3, 3]] * 3 if labels else [[], [], []],
        pixels_sha256=["", "", ""],
        sha256="x",
        heldout=None,
        heldout_images=0,
        features=None,
    )


WITHOUT_LABELS = {
    "model.conditional is True": ["--model.conditional=true"],
    "participation.policy is 'balanced'": [
        "--participation.policy=balanced",
        "--participation.count=2",
    ],
    "algorithm.name is 'fegan'": ["--algorithm.name=fegan"],
}


def check(manifest: Manifest, *arguments: str) -> None:
    command = parse(list(arguments))
    assert isinstance(command, Train)
    check_manifest(command.config, Path("shards"), manifest)


@pytest.mark.parametrize("sentence", WITHOUT_LABELS)
def test_classes_need_labels(sentence):
    check(manifest(), *WITHOUT_LABELS[sentence])
    with pytest.raises(UserError) as error:
        check(manifest(labels=False), *WITHOUT_LABELS[sentence])
    assert str(error.value) == f"{sentence}, but the shards in shards have no labels"


def test_shares_by_distance_need_no_labels():
    check(manifest(labels=False), "--algorithm.name=fegan", "--algorithm.preset=ifl")


@pytest.mark.parametrize(("held", "metrics"), [(1, "frechet"), (5, "frechet,prdc")])
def test_a_score_needs_some_held_out_images(held, metrics):
    command = parse(["--evaluation.metrics", json.dumps(metrics.split(","))])
    assert isinstance(command, Train)
    config = command.config
    with pytest.raises(UserError, match=rf"x holds {held} images, but a score needs at least"):
        check_samples(config, held, "x")
    check_samples(config, held + 1, "x")


def test_the_residual_pair_is_for_two_sizes():
    check(manifest(32), "--model.architecture=sngan")
    check(manifest(64), "--model.architecture=sngan")
    with pytest.raises(UserError, match=r"'sngan', which is for 32 and 64 pixels, but .* have 16"):
        check(manifest(16), "--model.architecture=sngan")


def test_no_more_batches_of_fakes_than_devices():
    check(manifest(), "--algorithm.name=mdgan", "--algorithm.fake_batches=3")
    with pytest.raises(UserError, match="fake_batches is 4, but must be at most 3"):
        check(manifest(), "--algorithm.name=mdgan", "--algorithm.fake_batches=4")
