"""Micro-batches: a step on the parts of a batch equals the step on the whole batch."""

from __future__ import annotations

import pytest
import torch
from graph_cases import device_and_server
from rounds import UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_shards, vectors

from fedgan_mpi.comm.link import Link
from fedgan_mpi.nn.steps import Batch

PENALTIES = {
    "no penalty": {},
    "r1": {"regularizer": "r1"},
    "wgan-gp": {"loss": "wgan-gp"},
    "augmented": {"augment": ("flip", "color", "cutout")},
}
ALGORITHMS = {
    "ren": {"name": "ren"},
    "fedgan simultaneous": {"name": "fedgan"},
    "fedgan alternating": {"name": "fedgan", "local_update": "alternating"},
    "mdgan": {"name": "mdgan"},
}


def trained(algorithm, training, batchnorm=False):
    model = {"discriminator_norm": "none"} if training.get("loss") == "wgan-gp" else {}
    config = toy_config(algorithm=algorithm, training=training, model=model)
    made = toy_algorithm(Link(), config, toy_shards(UNEQUAL), batchnorm=batchnorm)
    lines = play(made, 3)
    return torch.cat(vectors(made)), [(line["d_loss"], line["g_loss"]) for line in lines]


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())
@pytest.mark.parametrize("training", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_steps_equal_whole_ones(algorithm, training, parts):
    """In float64 without BatchNorm; batches of 4 and 5 images are cut unevenly."""
    parameters, losses = trained(algorithm, training)
    accumulated, accumulated_losses = trained(algorithm, {**training, "accumulate": parts})
    torch.testing.assert_close(accumulated, parameters, rtol=1e-9, atol=1e-12)
    for one, other in zip(losses, accumulated_losses, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_batchnorm_makes_them_differ():
    whole, _ = trained({}, {}, batchnorm=True)
    parts, _ = trained({}, {"accumulate": 2}, batchnorm=True)
    assert (whole - parts).abs().max() > 1e-6


def test_more_parts_than_images_are_fine():
    parameters, _ = trained({}, {})
    single, _ = trained({}, {"accumulate": 100})
    torch.testing.assert_close(single, parameters, rtol=1e-9, atol=1e-12)


def test_parts_keep_images_classes_and_numbers_together():
    data, classes = torch.arange(10.0)[:, None], torch.eye(10)
    parts = Batch(data, classes).split(4)
    assert [len(part.data) for part in parts] == [3, 3, 2, 2]
    for part in parts:
        assert (part.classes.argmax(1) == part.data[:, 0]).all() and part.numbers is None


def test_the_largest_pass_of_a_step_is_one_part():
    device, server = device_and_server(None, training={"accumulate": 2})
    sizes = []
    device.pair.D.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    device.train_discriminator(0)
    server.train_generator()
    assert max(sizes) == 3  # of batches of 4 and 5 images
