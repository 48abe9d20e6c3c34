"""Recorded steps and routes on one GPU, as ratios of pairs that alternate in one run.

    python benchmarks/gpu.py step                       # steps of D: recorded, eager, bare loop
    mpirun -n 2 python benchmarks/gpu.py round          # a round against its steps alone; 1+1 ranks
    mpirun -n 5 python benchmarks/gpu.py round          # 1+4 ranks on the one GPU
    mpirun -n 2 python benchmarks/gpu.py route          # communication: MPI on GPU memory / staged

Wanted: recorded / eager at most 0.6 and bare / recorded at least 0.9; round / steps at most 1.05;
cuda route / host route at most 0.5. The last needs a CUDA-aware MPI. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import fedgan_mpi.training.environment  # noqa: F401 - before numpy and torch are loaded
from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches, Shard
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.rank import build_rank_state
from fedgan_mpi.hardware.placement import choose_torch_device
from fedgan_mpi.nn.precision import use_tf32
from fedgan_mpi.training.loop import run_round
from fedgan_mpi.training.state import TrainState

Graphs = Literal["auto", "on", "off"]
Route = Literal["auto", "host", "cuda"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "round", "route"])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=50, help="steps or rounds in a block")
    parser.add_argument("--steps", type=int, default=5, help="n_d and n_g of a round")
    parser.add_argument("--autocast", choices=["off", "bfloat16"], default="off")
    parser.add_argument("--memory-format", default="contiguous")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a GPU that torch sees, and there is none here")
    result = {"step": step, "round": whole_round, "route": routes}[args.what](args)
    if result:
        about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, **vars(args)}
        print(json.dumps({**result, **about}), flush=True)


# ---------------------------------------------------------------- one process: steps of D


def step(args: argparse.Namespace) -> dict[str, object]:
    use_tf32(True)
    ways = {
        "recorded": _device("on", args).train_discriminator,
        "eager": _device("off", args).train_discriminator,
        "bare": bare_loop(args),
    }
    seconds = alternate({name: partial(act, 0) for name, act in ways.items()}, args)
    return {
        "benchmark": "steps of D",
        "recorded / eager": ratio(seconds["recorded"], seconds["eager"]),
        "bare / recorded": ratio(seconds["bare"], seconds["recorded"]),
        "milliseconds": milliseconds(seconds),
    }


def bare_loop(args: argparse.Namespace) -> Callable[[int], None]:
    """The same step of D as one CUDA graph, written by hand: no vector, no shard, torch's own fused
    Adam, everything drawn in GPU memory beforehand."""
    config = configuration("off", args)
    pair = build_networks(config, (3, args.size, args.size), "cuda")
    G, D, shape = pair.G, pair.D, (args.batch, 3, args.size, args.size)
    for p in D.parameters():
        p.grad = None
    adam = torch.optim.Adam(
        D.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True, capturable=True
    )
    real, z = torch.rand(shape, device="cuda") * 2 - 1, torch.randn(args.batch, 100, device="cuda")
    losses = torch.zeros((), device="cuda")

    def act() -> None:
        adam.zero_grad(set_to_none=False)
        with torch.no_grad():
            fake = G(z)
        for logits, sign in ((D(real), -1), (D(fake), 1)):
            loss = torch.nn.functional.softplus(sign * logits).mean()
            loss.backward()
            losses.add_(loss.detach())
        adam.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            act()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        act()

    def steps(_: int) -> None:
        for _ in range(args.steps):
            graph.replay()
        float(losses)

    return steps


# ---------------------------------------------------------------- ranks: rounds and routes


def whole_round(args: argparse.Namespace) -> dict[str, object] | None:
    """A round against the same steps alone: those of all devices and the server's, which share the
    one GPU."""
    link, config, torch_device = _link(args, "auto")
    algorithm = _algorithm(link, config, torch_device, args)
    alone = _device("on", args) if link.is_server else None
    server = algorithm.server
    progress = TrainState()
    ratios, rounds, t = [], [], 0
    for block in range(args.blocks + 1):
        link.barrier()
        start = time.perf_counter()
        for _ in range(args.repeats):
            if alone is not None and server is not None:
                for _ in range(link.device_ranks):
                    alone.train_discriminator(0)
                server.train_generator()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        ideal = link.from_server(partial(float, seconds))
        link.barrier()
        start = time.perf_counter()
        for _ in range(args.repeats):
            run_round(algorithm, t, progress)
            t += 1
        torch.cuda.synchronize()
        link.barrier()  # what devices have begun of the next round is this block's, too
        seconds = time.perf_counter() - start
        if block > 0:
            ratios.append(seconds / ideal)
            rounds.append(seconds / args.repeats)
    if not link.is_server:
        return None
    return {
        "benchmark": "round / its steps alone",
        "ratio": round(statistics.median(ratios), 3),
        "blocks": [round(min(ratios), 3), round(max(ratios), 3)],
        "round_ms": round(1e3 * statistics.median(rounds), 3),
        "ranks": link.size,
        "route": link.route,
        "mpi": link.library(),
    }


def routes(args: argparse.Namespace) -> dict[str, object] | None:
    """Seconds of a downlink and an uplink of the pair's vectors by either route."""
    links = {route: _link(args, route)[0] for route in ("cuda", "host")}
    config, torch_device = configuration("off", args), f"cuda:{torch.cuda.current_device()}"
    flat = build_networks(config, (3, args.size, args.size), torch_device).flat
    rows, into = torch.zeros(1, flat.discriminator.numel()).to(torch_device), flat.discriminator

    def there_and_back(link: Link) -> Callable[[], object]:
        def act() -> None:
            link.broadcast(flat.gan)
            link.average(rows, into)
            torch.cuda.synchronize()

        return act

    seconds = alternate({name: there_and_back(link) for name, link in links.items()}, args)
    if not links["cuda"].is_server:
        return None
    return {
        "benchmark": "downlink and uplink, cuda route / host route",
        "ratio": ratio(seconds["cuda"], seconds["host"]),
        "milliseconds": milliseconds(seconds),
        "ranks": links["cuda"].size,
        "mpi": Link.library(),
    }


# ---------------------------------------------------------------- parts


def configuration(graphs: Graphs, args: argparse.Namespace, route: Route = "auto") -> Config:
    config = Config()
    training = replace(
        config.training,
        graphs=graphs,
        batch_size=args.batch,
        generator_batch_size=args.batch,
        discriminator_steps=args.steps,
        generator_steps=args.steps,
        autocast=args.autocast,
        memory_format=args.memory_format,
    )
    return replace(config, training=training, link=replace(config.link, route=route))


def _link(args: argparse.Namespace, route: Route) -> tuple[Link, Config, str]:
    link, config = Link(), configuration("on", args, route)
    link.configure(config.link)
    return link, config, choose_torch_device(config, link)


def _shard(args: argparse.Namespace) -> Shard:
    shape = (4 * args.batch, 3, args.size, args.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Shard(path=Path("noise"), images=pixels, labels=None, sha256="")


def _device(graphs: Graphs, args: argparse.Namespace) -> Device:
    config = configuration(graphs, args)
    place = f"cuda:{torch.cuda.current_device()}"
    pair = build_networks(config, (3, args.size, args.size), place)
    return Device(1, Batches(_shard(args), batch_size=args.batch, seed=0, device=1), pair, config)


def _algorithm(
    link: Link, config: Config, torch_device: str, args: argparse.Namespace
) -> Algorithm:
    pair = build_networks(config, (3, args.size, args.size), torch_device)
    shards = {k: _shard(args) for k in hosted_devices(link.device_ranks, link)}
    rank_state = build_rank_state(link, config, pair, shards, [4 * args.batch] * link.device_ranks)
    return ALGORITHMS["ren"](rank_state)


def alternate(
    acts: dict[str, Callable[[], object]], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each act in each block; the first block warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for block in range(args.blocks + 1):
        for name, act in acts.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(args.repeats):
                act()
            torch.cuda.synchronize()
            if block > 0:
                seconds[name].append((time.perf_counter() - start) / args.repeats)
    return seconds


def ratio(one: list[float], other: list[float]) -> dict[str, object]:
    """Median over blocks, and the smallest and the largest."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    spread = [round(min(ratios), 3), round(max(ratios), 3)]
    return {"median": round(statistics.median(ratios), 3), "blocks": spread}


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(1e3 * statistics.median(each), 3) for name, each in seconds.items()}


if __name__ == "__main__":
    main()
