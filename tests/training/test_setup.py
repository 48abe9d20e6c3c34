"""Checks of the configuration against shards, in one process and before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.cli.commands import parse
from fedgan_mpi.cli.parser import Train
from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest
from fedgan_mpi.data.loading import check_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.training.preflight import check_manifest


def test_checks_run_before_torch_is_imported():
    """Its import takes nine ranks on two cores many seconds."""
    code = (
        "import sys; import fedgan_mpi.cli.commands, fedgan_mpi.training.setup; "
        "print(sorted({'torch', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def make_manifest(size: int = 32, labels: bool = True) -> Manifest:
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


def config_of(*flags: str) -> Config:
    command = parse(list(flags))
    assert isinstance(command, Train)
    return command.config


def check(manifest: Manifest, *flags: str) -> None:
    check_manifest(config_of(*flags), Path("shards"), manifest)


NEED_LABELS = {
    "model.conditional is True": ["--model.conditional=true"],
    "participation.policy is 'balanced'": [
        "--participation.policy=balanced",
        "--participation.count=2",
    ],
    "algorithm.name is 'fegan'": ["--algorithm.name=fegan"],
}
"""Beginning of the message -> flags."""


@pytest.mark.parametrize("message", NEED_LABELS)
def test_classes_need_labels(message):
    check(make_manifest(), *NEED_LABELS[message])
    with pytest.raises(UserError) as error:
        check(make_manifest(labels=False), *NEED_LABELS[message])
    assert str(error.value) == f"{message}, but the shards in shards have no labels"


def test_shares_by_discrepancy_need_no_labels():
    check(make_manifest(labels=False), "--algorithm.name=fegan", "--algorithm.preset=ifl")


@pytest.mark.parametrize(("heldout", "metrics"), [(1, "frechet"), (5, "frechet,prdc")])
def test_scores_need_a_minimum_of_held_out_images(heldout, metrics):
    config = config_of("--evaluation.metrics", json.dumps(metrics.split(",")))
    with pytest.raises(UserError, match=rf"x holds {heldout} images, but a score needs at least"):
        check_samples(config, heldout, "x")
    check_samples(config, heldout + 1, "x")


@pytest.mark.parametrize("architecture", ["dcgan", "sngan", "resnet"])
def test_the_built_in_networks_need_eight_pixels(architecture):
    for size in (8, 28, 31, 200):
        check(make_manifest(size), f"--model.architecture={architecture}")
    with pytest.raises(UserError, match=r"are 7×7, but the networks need .* at least 8 pixels"):
        check(make_manifest(7), f"--model.architecture={architecture}")


def test_more_fake_batches_than_devices_are_refused():
    check(make_manifest(), "--algorithm.name=mdgan", "--algorithm.fake_batches=3")
    with pytest.raises(UserError, match="fake_batches is 4, but must be at most 3"):
        check(make_manifest(), "--algorithm.name=mdgan", "--algorithm.fake_batches=4")
