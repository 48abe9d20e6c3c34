"""A simulated backdoor: attackers train on images with a patch, and scores count it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rounds import UNEQUAL, trained
from toys import toy_config, toy_shards

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import AttackConfig
from fedgan_mpi.evaluation.backdoor_share import BackdoorShare
from fedgan_mpi.federation.backdoor import Backdoor

pytestmark = pytest.mark.mpi(min_size=3)


def attack(**changes):
    return {"devices": (2, 5), "kind": "backdoor", "patch": 2, **changes}


def with_patch(shards):
    """Return shards in which the images of devices 2 and 5 have a white corner."""
    patched = {}
    for k, shard in shards.items():
        images = shard.images.copy()
        if k in (2, 5):
            images[:, :, 2:, 2:] = 255
        patched[k] = replace(shard, images=images)
    return patched


@pytest.mark.parametrize(
    "training", [{}, {"augment": ("flip", "cutout")}], ids=["plain", "augment"]
)
@pytest.mark.parametrize("name", ["ren", "fedgan", "fegan", "dp_fedavg_gan"])
def test_a_backdoor_is_training_on_shards_with_the_patch(comm, name, training):
    link, base = Link(comm), {"algorithm": {"name": name}, "training": training}
    shards = toy_shards(UNEQUAL)
    honest = trained(link, toy_config(**base), shards, 4)
    expected = trained(link, toy_config(**base), with_patch(shards), 4)
    result = trained(link, toy_config(**base, attack=attack()), shards, 4)
    if link.is_server:
        assert all(map(torch.equal, result, expected))
        assert not all(map(torch.equal, result, honest))


def test_a_backdoor_begins_in_its_round(comm):
    link, shards = Link(comm), toy_shards(UNEQUAL)
    honest = {rounds: trained(link, toy_config(), shards, rounds) for rounds in (2, 3)}
    config = toy_config(attack=attack(from_round=3))
    attacked = {rounds: trained(link, config, shards, rounds) for rounds in (2, 3)}
    if link.is_server:
        assert all(map(torch.equal, attacked[2], honest[2]))
        assert not all(map(torch.equal, attacked[3], honest[3]))


def test_opacity_blends_the_patch(comm):
    images = torch.linspace(-1, 1, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    config = AttackConfig(devices=(1,), kind="backdoor", strength=0.25, patch=2)
    assert torch.equal(Backdoor(config, 2).paste(images.clone(), 0), images)  # an honest device
    pasted = Backdoor(config, 1).paste(images.clone(), 0)
    for row in range(4):
        for column in range(5):
            before = images[..., row, column]
            inside = row >= 2 and column >= 3
            expected = 0.75 * before + 0.25 if inside else before
            torch.testing.assert_close(pasted[..., row, column], expected)


def test_the_share_counts_bright_corners_over_ranks(comm):
    images = np.zeros((10, 1, 6, 6), np.uint8)
    images[:3, :, 4:, 4:] = 255  # the patch
    images[3:5, :, 4:, 4:] = 192  # brighter than three quarters of white
    images[5, :, 4:, 4:] = 190  # a little less bright
    images[6, :, :4, :4] = 255  # the wrong corner
    share = BackdoorShare(AttackConfig(devices=(1,), kind="backdoor", patch=2))
    link = Link(comm)
    if not link.is_server:
        share.accumulate(images)
    assert share.finish(link) == 0.5
    assert BackdoorShare(AttackConfig()).finish(link) == 0.0
