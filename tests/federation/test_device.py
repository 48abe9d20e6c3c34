"""A device's steps, whose real images were drawn before there was anything to do with them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from toys import NZ, toy_config, toy_networks, toy_shards

from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.nn.losses import LOSSES


def make_device() -> Device:
    torch.manual_seed(3)
    config = toy_config()
    G, D = toy_networks()
    pair = pack_networks(
        G, D, nz=NZ, image_shape=(1, 4, 4), loss=LOSSES[config.training.loss], config=config
    )  # fmt: skip
    batches = Batches(toy_shards([10])[1], batch_size=4, seed=0, device=1)
    return Device(1, batches, pair, config)


def flat(state: dict[str, Any]) -> list[torch.Tensor]:
    numbers = [state["noise_stream"], *state["moments"][0].values(), state["drawn"]]
    return [torch.as_tensor(value).clone() for value in numbers]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("begins", [True, False])
def test_images_drawn_ahead_are_the_next_ones_and_nothing_has_happened(begins):
    ahead, plain = make_device(), make_device()
    for t in range(4):  # steps of 4 of 10 images: an epoch ends in the middle of some
        before = flat(ahead.state())
        ahead.prefetch_images()
        if begins:
            ahead.prefetch(t)
        ahead.prefetch_images()  # once more: it has its images
        assert same(flat(ahead.state()), before)
        assert ahead.batches.drawn == 8 * t
        assert ahead.train_discriminator(t) == plain.train_discriminator(t)
        assert same(flat(ahead.state()), flat(plain.state()))
        assert torch.equal(ahead.pair.flat.vector, plain.pair.flat.vector)
    assert ahead.batches.drawn == 32


def test_each_image_is_drawn_once_and_in_its_turn():
    device, batches = make_device(), make_device().batches
    turns = [torch.from_numpy(batches.draw()).double() * 2 / 255 - 1 for _ in range(5)]
    assert torch.allclose(device.real_batch().data, turns[0])
    device.prefetch_images()
    assert torch.allclose(device.real_batch().data, turns[1])
    assert torch.allclose(device.real_batch().data, turns[2])
    device.prefetch(0)
    assert device._begun is not None and torch.allclose(device._begun[0].data, turns[3])
    assert device.batches.drawn == 12
    assert torch.allclose(device.real_batch().data, turns[3])  # of one that forgets what it began
    device.forget()
    assert torch.allclose(device.real_batch().data, turns[4])
    assert device.batches.drawn == 20


def test_who_goes_back_forgets_what_was_drawn():
    device, fresh = make_device(), make_device()
    start = deepcopy(device.state())
    device.train_discriminator(0)
    later = deepcopy(device.state())
    device.prefetch_images()
    device.load_state(start)
    device.pair.flat.vector.copy_(fresh.pair.flat.vector)
    assert device.train_discriminator(0) == fresh.train_discriminator(0)
    assert same(flat(device.state()), flat(later))
