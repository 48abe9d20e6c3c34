"""Measures a round of every algorithm against its bare steps, with one server and one device.

    mpirun -n 2 python benchmarks/algorithms.py

The bare steps run in the server's process alone. They use separate networks and the functions of
fedgan_mpi/nn: no flat vector, no average and no shard. Bare steps and rounds alternate in blocks of
one run. The seconds of the link are subtracted from a round; each verb counts the minimum over
ranks, which excludes waiting. Prints one JSON line per algorithm.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import common
import torch

from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.federation.networks import NetworkPair, build_networks
from fedgan_mpi.nn.optimizers import make_optimizer
from fedgan_mpi.nn.steps import (
    Batch,
    discriminator_step,
    feedback,
    generator_step,
    logits_and_input_gradients,
    simultaneous_step,
)


class BareSteps:
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
                # The server back-propagates the batch whose gradient the device returned.
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
    sets_generator_steps = algorithm.traits.sets_generator_steps
    return replace(
        config,
        model=replace(config.model, ema=0.0),
        algorithm=algorithm,
        training=replace(
            config.training,
            generator_steps=None if sets_generator_steps else 1,
            batch_size=args.batch,
            generator_batch_size=args.batch,
        ),
    )


def measure(link: Link, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the result of one algorithm. Collective."""
    config = configuration(name, args)
    shape = (args.channels, args.size, args.size)
    shard = common.noise_shard(shape, 4 * args.batch)
    rounds = common.Rounds(
        common.build_algorithm(link, config, build_networks(config, shape), shard)
    )
    bare = BareSteps(config, build_networks(config, shape)) if link.is_server else None
    seconds_round, seconds_bare, seconds_link = [], [], []
    for block in range(args.blocks + 1):
        bare_seconds = link.from_server(lambda: bare.seconds(args.rounds) if bare else 0.0)
        link.barrier()
        start = time.perf_counter()
        link_seconds = 0.0
        for _ in range(args.rounds):
            line = rounds.run()
            link_seconds += line["seconds_downlink"] + line["seconds_uplink"]
        link.barrier()  # includes the early start of the next round
        if block > 0:  # block 0 warms up
            seconds_round.append((time.perf_counter() - start) / args.rounds)
            seconds_bare.append(bare_seconds)
            seconds_link.append(link_seconds / args.rounds)
    ratios = [
        (total - of_link) / of_bare
        for total, of_link, of_bare in zip(seconds_round, seconds_link, seconds_bare, strict=True)
    ]
    return {
        "algorithm": name,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "round_ms": common.median_ms(seconds_round),
        "bare_ms": common.median_ms(seconds_bare),
        "link_ms": common.median_ms(seconds_link, digits=3),
    }


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per block")
    parser.add_argument("--only", default="", help="part of the names of algorithms")
    args = parser.parse_args()
    torch.set_num_threads(1)
    link = Link()
    for name in ALGORITHMS:
        if name != "centralized" and args.only in name:
            result = measure(link, name, args)
            if link.is_server:
                common.print_json(result)


if __name__ == "__main__":
    main()
