"""A round of every algorithm against the bare steps it consists of, on one server and one device.

    mpirun -n 2 python benchmarks/algorithms.py

Bare steps run on the server's process alone, with its own networks, straight from `learning/`: no
vector is packed, nothing is averaged, no shard is read. Bare steps and rounds alternate in blocks
of one run. From a round, the link's own time is taken off: in each verb, that of the rank that came
last. Ratio: median over blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Shard
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import NetworkPair, build_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.nn.optimizers import make_optimizer
from fedgan_mpi.nn.steps import (
    Batch,
    discriminator_step,
    feedback,
    generator_step,
    logits_and_input_gradients,
    simultaneous_step,
)
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.state import TrainState


class Bare:
    """The steps of a round and nothing else."""

    def __init__(self, config: Config, pair: NetworkPair) -> None:
        self.config, self.pair, self.batch = config, pair, config.training.batch_size
        flat = pair.flat
        make = partial(make_optimizer, kind="adam", lr=2e-4, betas=(0.5, 0.999))
        self.optimizer_g, self.optimizer_d = make(flat.theta), make(flat.phi)
        self.stream = torch.Generator().manual_seed(0)
        self.real = Batch(torch.rand(self.batch, *pair.image_shape) * 2 - 1)

    def seconds(self, rounds: int) -> float:
        start = time.perf_counter()
        for _ in range(rounds):
            self.round()
        return (time.perf_counter() - start) / rounds

    def round(self) -> None:
        algorithm, pair = self.config.algorithm, self.pair
        if algorithm.traits.devices_train_generator:
            simultaneous_step(
                pair.G,
                pair.D,
                pair.loss,
                self.optimizer_g,
                self.optimizer_d,
                self.real,
                self.noise(),
            )
        elif algorithm.traits.devices_keep_discriminator:
            count = algorithm.fake_batches if algorithm.name == "mdgan" else 1
            fakes = [self.noise().data for _ in range(count)]
            images = [pair.G(z) for z in fakes]
            for_d = Batch(images[0].detach())
            discriminator_step(pair.D, pair.loss, self.optimizer_d, self.real, for_d)
            if algorithm.name == "mdgan":
                # The server goes back through the batch that this device was asked about.
                gradient = feedback(pair.D, pair.loss, Batch(images[-1]))[1]
            else:
                gradient = logits_and_input_gradients(pair.D, Batch(images[-1]))[1]
            self.optimizer_g.zero_gradient()
            torch.autograd.backward(images, [gradient for _ in images])
            self.optimizer_g.step()
        else:
            fake = pair.fakes(self.noise())
            discriminator_step(pair.D, pair.loss, self.optimizer_d, self.real, fake)
            generator_step(pair.G, pair.D, pair.loss, self.optimizer_g, self.noise())

    def noise(self) -> Batch:
        return self.pair.noise(self.batch, self.stream)


def configuration(name: Any, args: argparse.Namespace) -> Config:
    config = Config()
    algorithm = replace(config.algorithm, name=name, epochs=0 if name == "mdgan" else 1)
    own = algorithm.traits.sets_generator_steps
    return replace(
        config,
        model=replace(config.model, ema=0.0),
        algorithm=algorithm,
        training=replace(
            config.training,
            generator_steps=None if own else 1,
            batch_size=args.batch,
            generator_batch_size=args.batch,
        ),
    )


def measure(link: Link, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Collective."""
    config = configuration(name, args)
    shape = (args.channels, args.size, args.size)
    stream = np.random.default_rng(0)
    pixels = stream.integers(0, 256, (4 * args.batch, *shape), dtype=np.uint8)
    labels = stream.integers(0, 10, len(pixels))
    shard = Shard(path=Path("noise"), images=pixels, labels=labels, sha256="")
    devices = link.device_ranks
    shards = {k: shard for k in hosted_devices(devices, link)}
    histograms = [np.bincount(labels, minlength=10).tolist()] * devices
    images = [len(pixels)] * devices
    rank_state = build_rank_state(
        link, config, build_networks(config, shape), shards, images, histograms
    )
    algorithm = ALGORITHMS[name](rank_state)
    bare = Bare(config, build_networks(config, shape)) if link.is_server else None
    ratios, rounds, ideals, links, t = [], [], [], [], 0
    for block in range(args.blocks + 1):
        ideal = link.from_server(lambda: bare.seconds(args.rounds) if bare else 0.0)
        link.barrier()
        start = time.perf_counter()
        on_the_link = 0.0
        for _ in range(args.rounds):
            line = run_round(algorithm, t, TrainState())
            on_the_link += line["seconds_downlink"] + line["seconds_uplink"]
            t += 1
        link.barrier()  # what devices have begun of the next round is this block's, too
        seconds = (time.perf_counter() - start) / args.rounds
        on_the_link /= args.rounds
        if block > 0:  # the first warms up
            ratios.append((seconds - on_the_link) / ideal)
            rounds.append(seconds)
            ideals.append(ideal)
            links.append(on_the_link)
    return {
        "algorithm": name,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "round_ms": round(1e3 * statistics.median(rounds), 2),
        "bare_ms": round(1e3 * statistics.median(ideals), 2),
        "link_ms": round(1e3 * statistics.median(links), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5, help="in a block")
    parser.add_argument("--only", default="", help="algorithms whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    link = Link()
    for name in ALGORITHMS:
        if name != "centralized" and args.only in name:
            result = measure(link, name, args)
            if link.is_server:
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
