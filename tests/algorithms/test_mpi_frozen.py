"""Layers of D that no step changes: their bits, and the bytes that they save."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rounds import FEDERATED, UNEQUAL
from toys import play, toy_algorithm, toy_config, toy_networks, toy_shards

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

UPDATES = {
    "exact": {},
    "lossy": {"link": {"wire_dtype": "bfloat16"}, "training": {"precision": "float32"}},
    "server adam": {"aggregation": {"server_optimizer": "adam"}},
    "compressed": {"aggregation": {"compression": "top_k"}},
}
CASES = [
    *((name, update) for name in FEDERATED for update in ("exact", "lossy")),
    *((name, update) for name in ("ren", "fedgan", "fegan") for update in UPDATES),
    ("dp_fedavg_gan", "server adam"),
]


def frozen_config(name, layers=1, **changes):
    training = {"freeze_discriminator": layers, **changes.pop("training", {})}
    return toy_config(algorithm={"name": name}, training=training, **changes)


@pytest.mark.parametrize(("name", "update"), dict.fromkeys(CASES))
def test_fixed_layers_keep_their_bits_on_every_rank(comm, name, update):
    """They are neither rounded on the wire nor averaged, and get no noise."""
    config = frozen_config(name, **UPDATES[update])
    algorithm = toy_algorithm(Link(comm), config, toy_shards(UNEQUAL))
    pair = algorithm.rank_state.pair
    before = {key: value.clone() for key, value in pair.D.state_dict().items()}
    play(algorithm, 4)
    for device in algorithm.rank_state.devices:
        if algorithm.config.traits.devices_keep_discriminator:
            pair.flat.whole_discriminator.copy_(device.local.own[0])
    after = pair.D.state_dict()
    assert torch.equal(after["first.weight"], before["first.weight"])
    if algorithm.rank_state.devices:  # of mdgan and uagan, the server trains no D
        assert not torch.equal(after["last.weight"], before["last.weight"])


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("name", ["ren", "fedgan", "ensemble"])
def test_fixed_layers_are_not_sent(comm, name, layers):
    _, D = toy_networks()
    fixed = sum(p.numel() for layer in [*D.children()][:layers] for p in layer.parameters())
    assert fixed == (0, 16 * 8, 16 * 8 + 2 * 8)[layers]
    link = Link(comm)
    lines = [
        play(toy_algorithm(link, frozen_config(name, n), toy_shards(UNEQUAL)), 1)[0]
        for n in (0, layers)
    ]
    up, down = (lines[0][key] - lines[1][key] for key in ("bytes_up", "bytes_down"))
    assert up == 5 * 8 * fixed
    assert down == (0 if name == "ensemble" else 5 * 8 * fixed)
    assert lines[0]["bytes_up_other"] == lines[1]["bytes_up_other"]


def test_moments_of_fixed_layers_do_not_exist(comm):
    """Neither on devices nor, if they are averaged, on the wire."""
    trained = 2 * 8 + 8 + 1
    config = frozen_config("ren")
    config = replace(config, algorithm=replace(config.algorithm, moments="averaged"))
    algorithm = toy_algorithm(Link(comm), config, toy_shards(UNEQUAL))
    for device in algorithm.rank_state.devices:
        assert len(device.optimizer.first) == trained
    (line,) = play(algorithm, 1)
    assert line["bytes_up"] == 5 * 8 * trained
    assert line["bytes_up_other"] == 5 * 8 * (2 * trained + 2 * 8)
