"""A device's local round, started early or not, and its checkpointed state."""

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
        G, D, nz=NZ, image_shape=(1, 4, 4), loss=LOSSES[config.training.loss], config=config
    )
    batches = Batches(toy_shards([10])[1], batch_size=4, seed=0, device=1)
    return Device(1, batches, pair, config)


def flat(state: dict[str, Any]) -> list[torch.Tensor]:
    numbers = [state["noise_stream"], *state["moments"][0].values(), state["drawn"]]
    return [torch.as_tensor(value).clone() for value in numbers]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_an_early_start_changes_no_state_and_no_result():
    early, plain = make_device(), make_device()
    for t in range(4):  # steps of 4 of 10 images: epochs end inside of rounds
        before = flat(early.state())
        early.early_start.start(early.discriminator_round(t))
        assert early.early_start.has_started
        assert same(flat(early.state()), before)
        assert early.batches.drawn == 8 * t
        assert early.train_discriminator(t) == plain.train_discriminator(t)
        assert not early.early_start.has_started
        assert same(flat(early.state()), flat(plain.state()))
        assert torch.equal(early.pair.flat.vector, plain.pair.flat.vector)
    assert early.batches.drawn == 32


def test_the_part_before_the_generator_arrives_does_not_read_it():
    early, plain = make_device(), make_device()
    early.early_start.start(early.discriminator_round(0))
    for device in (early, plain):
        device.pair.flat.theta.data.mul_(0.5)  # the server's new G arrives
    assert early.train_discriminator(0) == plain.train_discriminator(0)
    assert torch.equal(early.pair.flat.phi, plain.pair.flat.phi)


def test_images_are_drawn_once_and_in_order():
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
    later = deepcopy(device.state())
    device.early_start.start(device.discriminator_round(1))
    device.load_state(start)
    assert not device.early_start.has_started
    device.pair.flat.vector.copy_(fresh.pair.flat.vector)
    assert device.train_discriminator(0) == fresh.train_discriminator(0)
    assert same(flat(device.state()), flat(later))


def test_no_steps_draw_nothing():
    device = make_device(discriminator_steps=0)
    before = flat(device.state())
    assert device.train_discriminator(0) is None
    assert same(flat(device.state()), before)


def test_undo_restores_moments_but_not_streams():
    device = make_device(non_finite="skip")
    before = flat(device.state())
    device.train_discriminator(0)
    after = flat(device.state())
    device.local.undo()
    undone = flat(device.state())
    assert not same(after, before)
    assert same(undone[1:-1], before[1:-1])  # the moments
    assert same(undone[:1], after[:1]) and same(undone[-1:], after[-1:])  # noise and images
