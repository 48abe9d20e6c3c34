"""Optimizer steps of every kind, for tests that compare captured and eager runs."""

from __future__ import annotations

from typing import Any

import torch
from toys import NZ, conditional_networks, toy_config, toy_networks, toy_shards

from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.nn.cuda_graphs import Recorder
from fedgan_mpi.nn.losses import LOSSES

STEP_KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "penalty": {"loss": "wgan-gp"},
    "classes": {"conditional": True},
    "simultaneous": {"algorithm": {"name": "fedgan"}},
    "alternating": {"algorithm": {"name": "fedgan", "local_update": "alternating"}},
    "augmented": {"training": {"augment": ("flip", "color", "translation", "cutout")}},
    "adaptive": {"training": {"augment": ("cutout",), "augment_target": 0.1}},
    "lazy": {"training": {"regularizer": "r1", "regularizer_interval": 3}},
    "lecam": {"training": {"regularizer": "lecam", "augment": ("color",)}},
    "given fakes": {"algorithm": {"name": "mdgan"}},
}
"""Kind -> options of `device_and_server`."""


def device_and_server(
    recorder: Recorder | None,
    *,
    loss: str = "nonsaturating",
    conditional: bool = False,
    algorithm: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    torch_device: str = "cpu",
) -> tuple[Device, Server]:
    """Return a device and a server that share one pair of toy networks."""
    has_penalty = loss == "wgan-gp"
    model: dict[str, Any] = {"discriminator_norm": "none"} if has_penalty else {}
    model |= {"conditional": True} if conditional else {}
    config = toy_config(
        training={"loss": loss, **(training or {})}, algorithm=algorithm or {}, model=model
    )
    networks = conditional_networks() if conditional else toy_networks(not has_penalty)
    class_shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) if conditional else None
    pair = pack_networks(
        *networks,
        nz=NZ,
        image_shape=(1, 4, 4),
        loss=LOSSES[loss],
        config=config,
        torch_device=torch_device,
        class_shares=class_shares,
    )
    pair.recorder = recorder
    batches = Batches(toy_shards([13])[1], batch_size=4, seed=0, device=1)
    return Device(1, batches, pair, config), Server(pair, config)


def train_five_rounds(
    kind: str, recorder: Recorder | None, torch_device: str = "cpu"
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Return the losses of five rounds, and the states of device and server after them."""
    device, server = device_and_server(recorder, torch_device=torch_device, **STEP_KINDS[kind])
    losses: list[Any] = []
    for t in range(5):
        if kind == "simultaneous" or kind == "alternating":
            losses += device.train_both(t, 2, kind)
        elif kind == "given fakes":
            with device.local_state():
                losses.append(device.train_against(device.pair.fakes(device.noise())))
        else:
            losses += [device.train_discriminator(t), server.train_generator()]
    return losses, device.state(), server.state()
