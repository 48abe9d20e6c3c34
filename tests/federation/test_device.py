"""A device's local round, with and without an early start, and its checkpointed state."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from toys import NZ, toy_config, toy_networks, toy_shards

from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.nn.losses import LOSSES


def make_device(**training: Any) -> Device:
    torch.manual_seed(3)
    config = toy_config(training=training)
    G, D = toy_networks()
    pair = pack_networks(
        G, D, nz=NZ, image_shape=(1, 4, 4), loss=LOSSES[config.training.loss_name], config=config
    )
    batches = Batches(toy_shards([10])[1], batch_size=4, seed=0, device=1)
    return Device(1, batches, pair, config)


def copy_state(device: Device) -> list[torch.Tensor]:
    """Return the noise stream, the moments, and the number of images drawn."""
    state = device.state()
    values = [state["noise_stream"], *state["moments"][0].values(), state["drawn"]]
    return [torch.as_tensor(value).clone() for value in values]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_an_early_start_changes_no_state_and_no_result():
    early, plain = make_device(), make_device()
    for t in range(4):  # steps of 4 of 10 images: epochs end inside rounds
        before = copy_state(early)
        early.early_start.start(early.discriminator_round(t))
        assert early.early_start.has_started
        assert equal(copy_state(early), before)
        assert early.batches.drawn == 8 * t
        assert early.train_discriminator(t) == plain.train_discriminator(t)
        assert not early.early_start.has_started
        assert equal(copy_state(early), copy_state(plain))
        assert torch.equal(early.pair.flat.vector, plain.pair.flat.vector)
    assert early.batches.drawn == 32


def test_the_part_before_the_yield_does_not_read_the_generator():
    early, plain = make_device(), make_device()
    early.early_start.start(early.discriminator_round(0))
    for device in (early, plain):
        device.pair.flat.theta.data.mul_(0.5)  # as the broadcast of θ_t
    assert early.train_discriminator(0) == plain.train_discriminator(0)
    assert torch.equal(early.pair.flat.phi, plain.pair.flat.phi)


def test_a_discarded_early_start_returns_its_images():
    """Every image is drawn once and in order."""
    device, batches = make_device(), make_device().batches
    expected = [torch.from_numpy(batches.draw()).double() * 2 / 255 - 1 for _ in range(3)]
    assert torch.allclose(device.real_batch().data, expected[0])
    device.early_start.start(device.discriminator_round(0))
    device.early_start.discard()
    assert device.batches.drawn == 4
    assert torch.allclose(device.real_batch().data, expected[1])
    assert torch.allclose(device.real_batch().data, expected[2])
    assert device.batches.drawn == 12


def test_a_rollback_discards_an_early_start():
    device, fresh = make_device(), make_device()
    start = deepcopy(device.state())
    device.train_discriminator(0)
    after_one_round = copy_state(device)
    device.early_start.start(device.discriminator_round(1))
    device.load_state(start)
    assert not device.early_start.has_started
    device.pair.flat.vector.copy_(fresh.pair.flat.vector)
    assert device.train_discriminator(0) == fresh.train_discriminator(0)
    assert equal(copy_state(device), after_one_round)


def test_zero_steps_draw_nothing():
    device = make_device(discriminator_steps=0)
    before = copy_state(device)
    assert device.train_discriminator(0) is None
    assert equal(copy_state(device), before)


def test_undo_restores_moments_but_not_streams():
    device = make_device(non_finite="skip")
    before = copy_state(device)
    device.train_discriminator(0)
    after = copy_state(device)
    device.local.undo()
    undone = copy_state(device)
    assert not equal(after, before)
    assert equal(undone[1:-1], before[1:-1])  # the moments
    assert equal(undone[:1], after[:1]) and equal(undone[-1:], after[-1:])  # noise and images
