"""FedGAN's part on a device in plain torch, as a user of the peers or of bare torch writes it.

The networks, shards, batches and initial parameters are those that fedgan_mpi has for the same
seed.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from fedgan_mpi.config import ModelConfig
from fedgan_mpi.data import Batches, Manifest, read_shard, shard_name
from fedgan_mpi.nn.registry import build, initialize
from fedgan_mpi.random_streams import Purpose, torch_stream

JOB: dict[str, Any] = json.loads(os.environ.get("PEERS_JOB", "{}"))
"""The job that compare.py describes: shards, model, rounds, silent_rounds, steps, batch, seed, lr,
export_every."""


class Gan(nn.ModuleDict):
    """G and D, with the initial parameters of the job's seed."""

    def __init__(self) -> None:
        model = ModelConfig(**JOB["model"])
        G, D = build(model, image_shape(), 0, JOB["seed"])
        stream = torch_stream(JOB["seed"], Purpose.PARAMETERS)
        for network in (G, D):
            initialize(network, model.initialization_rule, stream)
        super().__init__({"G": G, "D": D})
        self.model = model


def image_shape() -> tuple[int, int, int]:
    return Manifest.read(Path(JOB["shards"])).image_shape


@cache
def batches_of(device: int) -> Batches:
    """Return the batches of a device, counted from 1."""
    shard = read_shard(Path(JOB["shards"]) / shard_name(device), image_shape=image_shape())
    return Batches(shard, batch_size=JOB["batch"], seed=JOB["seed"], device=device)


def train(gan: Gan, device: int, round: int) -> int:
    """Take a round's local steps on both networks; return the number of the device's images.

    A step is simultaneous: both gradients use the same fakes and the parameters before the step.
    """
    batches = batches_of(device)
    if round < JOB["silent_rounds"]:
        return len(batches.shard)
    G, D = gan["G"], gan["D"]
    batches.drawn = (round - JOB["silent_rounds"]) * JOB["steps"] * batches.size
    stream = torch_stream(JOB["seed"], Purpose.FAKE, device, round)
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=JOB["lr"], betas=(0.5, 0.999))
        for network in (G, D)
    ]
    for _ in range(JOB["steps"]):
        real = torch.from_numpy(batches.draw()).float().div_(127.5).sub_(1)
        fake = G(torch.randn(len(real), gan.model.nz, generator=stream))
        d_loss = loss(D(real), True) + loss(D(fake.detach()), False)
        d_gradients = torch.autograd.grad(d_loss, list(D.parameters()))
        g_gradients = torch.autograd.grad(loss(D(fake), True), list(G.parameters()))
        for network, gradients in ((D, d_gradients), (G, g_gradients)):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    return len(batches.shard)


def loss(logits: Tensor, real: bool) -> Tensor:
    return cross_entropy(logits, torch.full_like(logits, float(real)))
