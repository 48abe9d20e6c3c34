"""Measures a round against its ideal: the same steps, timed alone and divided by the cores.

    mpirun -n 9 python benchmarks/round.py    # the networks of the default job
    mpirun -n 3 python benchmarks/round.py --schedule parallel --size 32

Ideals and rounds alternate in blocks of one run, and each block gives a ratio. The ideals:

ratio                One process with one thread takes n_d steps of D per device and n_g steps of G,
                     while the other ranks sleep.
ratio_all_cores      One process per core takes these steps at the same time. The processes compete
                     for memory, caches and hyperthreads.
ratio_cpu_time       The CPU time of the steps in the round itself. The ratio contains only waiting,
                     communication and idle cores.
ratio_critical_path  The shortest time of these steps in the order of the schedule. A step of G has
                     one thread, and early starts may not fill the other cores.

Prints JSON.
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

import common
import numpy as np
import torch

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config, choose_by_size
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.hardware.placement import set_threads
from fedgan_mpi.training.loop import make_affinity


def main() -> None:
    args = parse_arguments()
    link = Link(transport=args.transport)
    config = configuration(args)
    link.configure(config.link)
    set_threads(config, cores=link.local_cores, ranks=link.local_size)
    shape = (args.channels, args.size, args.size)
    shard = common.noise_shard(shape, 4 * args.batch, seed=link.rank)
    algorithm = common.build_algorithm(link, config, build_networks(config, shape), shard)
    rounds = common.Rounds(algorithm)
    affinity = make_affinity(algorithm)
    link.subscribers.append(affinity.on_verb)
    timer = StepTimer(rounds)
    cores, devices = link.local_cores, link.device_ranks
    workers = min(cores, link.size)
    alone = StepsAlone(config, shape, shard) if link.rank < workers else None

    seconds: dict[str, list[float]] = {
        name: [] for name in ("round", "alone", "all_cores", "cpu_time", "critical_path")
    }
    lines = []
    for block in range(args.blocks + 1):
        # If ranks share cores, waiting in a sum is sleep; other verbs poll.
        local = alone.seconds(devices, cores) if alone and link.is_server else 0.0
        ideal = float(link.sum(np.array([local]))[0])
        step_ms = alone.step_ms if alone else {}
        local = alone.seconds(devices, cores) if alone else 0.0
        ideal_all_cores = float(link.sum(np.array([local]))[0]) / workers
        timer.cpu_seconds[:] = 0.0
        start = time.perf_counter()
        with affinity.pinned():
            for _ in range(args.rounds):
                lines.append(rounds.run())
            link.any(False)  # includes the early start of the next round
        measured = (time.perf_counter() - start) / args.rounds
        device, early, server = (link.sum(timer.cpu_seconds) / args.rounds).tolist()
        cpu_time = (device + early + server) / cores
        before_server = device / cores if args.schedule == "serial" else 0.0
        critical_path = max(cpu_time, before_server + server)
        if block > 0:  # block 0 warms up
            values = (measured, ideal, ideal_all_cores, cpu_time, critical_path)
            for name, value in zip(seconds, values, strict=True):
                seconds[name].append(value)
    if link.is_server:
        ratios = {
            name: [a / b for a, b in zip(seconds["round"], seconds[name], strict=True)]
            for name in list(seconds)[1:]
        }
        result = {
            "benchmark": "round / ideal",
            "ratio": round(statistics.median(ratios["alone"]), 3),
            "ratios": [round(ratio, 3) for ratio in ratios["alone"]],
            "ratio_all_cores": round(statistics.median(ratios["all_cores"]), 3),
            "ratio_cpu_time": round(statistics.median(ratios["cpu_time"]), 3),
            "ratio_critical_path": round(statistics.median(ratios["critical_path"]), 3),
            "round_ms": common.median_ms(seconds["round"]),
            "ideal_ms": common.median_ms(seconds["alone"]),
            "ideal_all_cores_ms": common.median_ms(seconds["all_cores"]),
            "phases_ms": {
                key: common.median_ms(line[f"seconds_{key}"] for line in lines)
                for key in ("downlink", "local", "uplink", "server")
            },
            "step_ms": step_ms,
            "ranks": link.size,
            "cores": cores,
            "transport": link.transport,
            "mpi": link.library(),
            "torch": torch.__version__,
            **{
                key: vars(args)[key] for key in ("size", "channels", "batch", "schedule", "average")
            },
        }
        common.print_json(result)
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(result) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
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
    parser.add_argument("--rounds", type=int, default=20, help="rounds per block")
    parser.add_argument("--json", type=Path, default=None, help="append the result to this file")
    return parser.parse_args()


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


class StepTimer:
    """CPU seconds of this rank's thread in the steps of its rounds: [device, early start of a
    device, server]."""

    def __init__(self, rounds: common.Rounds) -> None:
        self.cpu_seconds = np.zeros(3)
        algorithm, overlap = rounds.algorithm, rounds.overlap
        self._timed, self._start_device = algorithm.timed, overlap.start_device
        self._is_early = False
        algorithm.timed = self._measure  # type: ignore[method-assign]
        overlap.start_device = self._start_early  # type: ignore[method-assign]

    @contextmanager
    def _measure(self, key: Literal["seconds_local", "seconds_server"]) -> Iterator[None]:
        part = 2 if key == "seconds_server" else int(self._is_early)
        with self._timed(key):
            start = time.thread_time()
            yield
            self.cpu_seconds[part] += time.thread_time() - start

    def _start_early(self, t: int) -> None:
        self._is_early = True
        self._start_device(t)
        self._is_early = False


class StepsAlone:
    """The steps of a round in one process and one thread, without communication."""

    def __init__(self, config: Config, shape: tuple[int, int, int], shard: Shard) -> None:
        config = choose_by_size(config, shape)
        pair = build_networks(config, shape)
        size = config.training.batch_size
        self.device = Device(1, Batches(shard, batch_size=size, seed=0, device=1), pair, config)
        self.server = Server(pair, config)
        self.step_ms: dict[str, float] = {}

    def seconds(self, devices: int, cores: int, repeats: int = 8) -> float:
        """Return the seconds of a round with all devices, divided by the cores."""
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
        self.step_ms = {
            "discriminator": round(1e3 * (middle - start) / repeats, 2),
            "generator": round(1e3 * (end - middle) / repeats, 2),
        }
        return ((middle - start) * devices + (end - middle)) / repeats / cores


if __name__ == "__main__":
    main()
