"""A round against its ideal: the same steps timed alone in one process, divided by the cores.

    mpirun -n 9 python benchmarks/round.py    # the default job's networks
    mpirun -n 3 python benchmarks/round.py --schedule parallel --size 32

Ideal and rounds alternate in blocks of one run, and the ratio is taken in each block, since
machines are noisy. The ideal counts n_d steps of D for every device and n_g of G, on one thread,
while the other ranks sleep. `ratio_busy` is against the same steps while as many processes as
there are cores take them at once and exchange nothing: what cores cost each other (memory, caches,
a host's threads that share a core) is in that ideal, and not in the first. `ratio_own` is against
the processor time that the round's own steps took, divided by the cores: what is lost in it to
waiting, to the wire and to cores without work. A machine's moods between blocks are not in it; nor
is what steps take longer among other processes, whose caches they share. `ratio_schedule` is
against the shortest time that those steps can take in the schedule's order: G's step is one
thread's, and what devices can begin beside it may not fill the other cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Shard
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.hardware.placement import set_threads
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.state import TrainState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=16, help="pixels")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--discriminator-steps", type=int, default=1)
    parser.add_argument("--generator-steps", type=int, default=1)
    parser.add_argument("--schedule", choices=["serial", "parallel"], default="serial")
    parser.add_argument("--average", choices=["reduce", "gather"], default="reduce")
    parser.add_argument("--transport", choices=["mpi", "polling", "shared_memory"], default=None)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=20, help="in a block")
    parser.add_argument("--json", type=Path, default=None, help="append the result to this file")
    args = parser.parse_args()

    link = Link(transport=args.transport)
    config = configuration(args)
    link.configure(config.link)
    set_threads(config, link)
    shape = (args.channels, args.size, args.size)
    devices = link.device_ranks
    stream = np.random.default_rng(link.rank)
    pixels = stream.integers(0, 256, (4 * args.batch, *shape), dtype=np.uint8)
    shard = Shard(path=Path("noise"), images=pixels, labels=None, sha256="")
    shards = {k: shard for k in hosted_devices(devices, link)}
    images = [len(pixels)] * devices
    rank_state = build_rank_state(link, config, build_networks(config, shape), shards, images)
    algorithm = ALGORITHMS["ren"](rank_state)
    own = Own(algorithm)
    workers = min(link.cores_here, link.size)
    alone = Alone(config, shape, shard) if link.rank < workers else None

    progress = TrainState()
    rounds, ideals, busy_ideals, own_ideals, schedule_ideals = [], [], [], [], []
    t, lines = 0, []
    for block in range(args.blocks + 1):
        # Where ranks share cores, those that wait in a sum are asleep; in other verbs they nap.
        mine = alone.seconds(devices, link.cores_here) if alone and link.is_server else 0.0
        ideal = float(link.sum(np.array([mine]))[0])
        alone_ms = alone.last if alone else {}
        mine = alone.seconds(devices, link.cores_here) if alone else 0.0
        busy_ideal = float(link.sum(np.array([mine]))[0]) / workers
        own.seconds[:] = 0.0
        start = time.perf_counter()
        with algorithm.cores.held():
            for _ in range(args.rounds):
                lines.append(run_round(algorithm, t, progress))
                t += 1
            link.any(False)  # what devices have begun of the next round is this block's, too
        seconds = (time.perf_counter() - start) / args.rounds
        device, ahead, server = (link.sum(own.seconds) / args.rounds).tolist()
        all_cores = (device + ahead + server) / link.cores_here
        if block > 0:  # the first warms up
            rounds.append(seconds)
            ideals.append(ideal)
            busy_ideals.append(busy_ideal)
            own_ideals.append(all_cores)
            before = device / link.cores_here if args.schedule == "serial" else 0.0
            schedule_ideals.append(max(all_cores, before + server))
    ratios, busy, of_own, of_schedule = (
        [seconds / ideal for seconds, ideal in zip(rounds, kind, strict=True)]
        for kind in (ideals, busy_ideals, own_ideals, schedule_ideals)
    )
    if link.is_server:
        result = {
            "benchmark": "round / ideal",
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ratio_busy": round(statistics.median(busy), 3),
            "ratio_own": round(statistics.median(of_own), 3),
            "ratio_schedule": round(statistics.median(of_schedule), 3),
            "round_ms": round(1e3 * statistics.median(rounds), 2),
            "ideal_ms": round(1e3 * statistics.median(ideals), 2),
            "ideal_busy_ms": round(1e3 * statistics.median(busy_ideals), 2),
            "phases_ms": {
                key: round(1e3 * statistics.median(line[f"seconds_{key}"] for line in lines), 2)
                for key in ("downlink", "local", "uplink", "server")
            },
            "alone_ms": alone_ms,
            "ranks": link.size,
            "cores": link.cores_here,
            "transport": link.transport,
            "mpi": link.library(),
            "torch": torch.__version__,
            **{
                key: vars(args)[key] for key in ("size", "channels", "batch", "schedule", "average")
            },
        }
        print(json.dumps(result), flush=True)
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(result) + "\n")


def configuration(args: argparse.Namespace) -> Config:
    config = Config()
    return replace(
        config,
        model=replace(config.model, width=args.width),
        algorithm=replace(config.algorithm, schedule=args.schedule),
        link=replace(config.link, average=args.average),
        training=replace(
            config.training,
            batch_size=args.batch,
            generator_batch_size=args.batch,
            discriminator_steps=args.discriminator_steps,
            generator_steps=args.generator_steps,
        ),
    )


class Own:
    """Seconds of processor time that this rank's thread spends on the steps of its rounds: as a
    device, as one that begins the next round, as the server."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.seconds = np.zeros(3)
        self._computing, self._look_ahead = algorithm.computing, algorithm.prefetch
        self._is_ahead = False
        algorithm.computing = self._measured  # type: ignore[method-assign]
        algorithm.prefetch = self._ahead  # type: ignore[method-assign]

    @contextmanager
    def _measured(self, what: Literal["seconds_local", "seconds_server"]) -> Iterator[None]:
        part = 2 if what == "seconds_server" else int(self._is_ahead)
        with self._computing(what):
            start = time.thread_time()
            yield
            self.seconds[part] += time.thread_time() - start

    def _ahead(self, t: int) -> None:
        self._is_ahead = True
        self._look_ahead(t)
        self._is_ahead = False


class Alone:
    """The steps of a round in one process on one thread, with its own networks."""

    def __init__(self, config: Config, shape: tuple[int, int, int], shard: Shard) -> None:
        from fedgan_mpi.data import Batches
        from fedgan_mpi.federation.device import Device
        from fedgan_mpi.federation.server import Server

        pair = build_networks(config, shape)
        size = config.training.batch_size
        self.device = Device(1, Batches(shard, batch_size=size, seed=0, device=1), pair, config)
        self.server = Server(pair, config)
        self.last: dict[str, float] = {}

    def seconds(self, devices: int, cores: int, repeats: int = 8) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        start = time.perf_counter()
        for _ in range(repeats):
            self.device.train_discriminator(0)
        middle = time.perf_counter()
        for _ in range(repeats):
            self.server.train_generator()
        end = time.perf_counter()
        torch.set_num_threads(threads)
        self.last = {
            "discriminator": round(1e3 * (middle - start) / repeats, 2),
            "generator": round(1e3 * (end - middle) / repeats, 2),
        }
        return ((middle - start) * devices + (end - middle)) / repeats / cores


if __name__ == "__main__":
    main()
