"""Measures CUDA graphs and the CUDA route on one GPU, as ratios of blocks of one run.

    python benchmarks/gpu.py step                       # steps of D: CUDA graph, eager, bare loop
    mpirun -n 2 python benchmarks/gpu.py round          # a round against its steps; 1+1 ranks
    mpirun -n 5 python benchmarks/gpu.py round          # 1+4 ranks on one GPU
    mpirun -n 5 python benchmarks/gpu.py route          # each verb on each route
    python benchmarks/gpu.py memory                     # memory after 50 and after 500 rounds

Limits: graph / eager 0.6; bare / graph at least 0.9; round / steps 1.05 at 1+1 ranks; auto / the
faster route 1.1; equal memory. `route` needs a CUDA-aware MPI. Prints JSON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import common
import torch

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config, choose_by_size
from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import build_networks, vector_lengths
from fedgan_mpi.hardware.placement import choose_torch_device
from fedgan_mpi.hardware.tf32 import use_tf32

Graphs = Literal["auto", "on", "off"]
Route = Literal["auto", "host", "cuda"]
ROUTES: tuple[Route, ...] = ("cuda", "host", "auto")


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("measurement", choices=["step", "round", "route", "memory"])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=50, help="steps or rounds per block")
    parser.add_argument("--steps", type=int, default=5, help="n_d and n_g of a round")
    parser.add_argument("--autocast", choices=["off", "bfloat16"], default="off")
    parser.add_argument("--memory-format", default="contiguous")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a GPU, and torch finds none")
    measure = {
        "step": measure_steps,
        "round": measure_rounds,
        "route": measure_routes,
        "memory": measure_memory,
    }
    result = measure[args.measurement](args)
    if result:
        gpu = torch.cuda.get_device_name()
        common.print_json({**result, "gpu": gpu, "torch": torch.__version__, **vars(args)})


# ---------------------------------------------------------------- one process: steps of D


def measure_steps(args: argparse.Namespace) -> dict[str, object]:
    use_tf32(True)
    loops = {
        "graph": _device("on", args).train_discriminator,
        "eager": _device("off", args).train_discriminator,
        "bare": bare_loop(args),
    }
    seconds = alternate({name: partial(loop, 0) for name, loop in loops.items()}, args)
    return {
        "benchmark": "steps of D",
        "graph / eager": common.ratio_summary(seconds["graph"], seconds["eager"]),
        "bare / graph": common.ratio_summary(seconds["bare"], seconds["graph"]),
        "ms": {name: common.median_ms(each, digits=3) for name, each in seconds.items()},
    }


def bare_loop(args: argparse.Namespace) -> Callable[[int], None]:
    """Return the same steps as a CUDA graph without code of the package: no flat vector, no shard,
    torch's fused Adam, and random tensors drawn in advance."""
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

    def step() -> None:
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
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def steps(_: int) -> None:
        for _ in range(args.steps):
            graph.replay()
        float(losses)

    return steps


# ---------------------------------------------------------------- ranks: rounds and routes


def measure_rounds(args: argparse.Namespace) -> dict[str, object] | None:
    """Compare a round to the same steps of all devices and the server in one process."""
    link, config, torch_device = _link(args, "auto")
    algorithm = _algorithm(link, config, torch_device, args)
    device = _device("on", args) if link.is_server else None
    server = algorithm.server
    rounds = common.Rounds(algorithm)
    seconds_steps, seconds_rounds = [], []
    for block in range(args.blocks + 1):
        link.barrier()
        start = time.perf_counter()
        for _ in range(args.repeats):
            if device is not None and server is not None:
                for _ in range(link.device_ranks):
                    device.train_discriminator(0)
                server.train_generator()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        ideal = link.from_server(partial(float, seconds))
        link.barrier()
        start = time.perf_counter()
        for _ in range(args.repeats):
            rounds.run()
        torch.cuda.synchronize()
        link.barrier()  # includes the early start of the next round
        if block > 0:  # block 0 warms up
            seconds_rounds.append((time.perf_counter() - start) / args.repeats)
            seconds_steps.append(ideal / args.repeats)
    if not link.is_server:
        return None
    return {
        "benchmark": "round / its steps alone",
        "ratio": common.ratio_summary(seconds_rounds, seconds_steps),
        "round_ms": common.median_ms(seconds_rounds, digits=3),
        "ranks": link.size,
        "routes": link.routes,
        "mpi": link.library(),
    }


def measure_routes(args: argparse.Namespace) -> dict[str, object] | None:
    """Compare the routes verb by verb, with the vectors of the networks."""
    links = {route: _link(args, route)[0] for route in ROUTES}
    link, torch_device = links["auto"], f"cuda:{torch.cuda.current_device()}"
    shape = (3, args.size, args.size)
    flat = build_networks(configuration("off", args), shape, torch_device).flat
    rows, into = torch.zeros(1, flat.discriminator.numel()).to(torch_device), flat.discriminator
    devices = range(1, link.size) if link.is_server else [link.rank]
    each = {device: torch.zeros_like(into) for device in devices}
    own = {} if link.is_server else each
    following = {device: device % link.device_ranks + 1 for device in range(1, link.size)}
    verbs: dict[str, Callable[[Link], object]] = {
        "broadcast": lambda link: link.broadcast(flat.gan),
        "reduce": lambda link: link.reduce(rows, into),
        "scatter": lambda link: link.scatter(each),
        "gather": lambda link: link.gather(each),
        "permute": lambda link: link.permute(own, following),
    }
    found: dict[str, object] = {}
    for name, communicate in verbs.items():
        seconds = alternate({route: partial(communicate, links[route]) for route in ROUTES}, args)
        nbytes = (flat.gan if name == "broadcast" else into).nbytes
        faster = min(seconds["cuda"], seconds["host"], key=statistics.median)
        found[name] = {
            "ms": {route: common.summary(1e3 * s for s in seconds[route]) for route in ROUTES},
            "GB/s": {
                route: round(nbytes / 1e9 / statistics.median(seconds[route]), 2)
                for route in ROUTES
            },
            "auto / faster": common.ratio_summary(seconds["auto"], faster),
        }
    if not link.is_server:
        return None
    return {
        "benchmark": "verbs by route",
        "verbs": found,
        "ranks": link.size,
        "routes": link.routes,
        "mpi": Link.library(),
    }


def measure_memory(args: argparse.Namespace) -> dict[str, object] | None:
    """Compare allocated GPU memory and pinned host memory after 50 and after 500 rounds."""
    link, config, torch_device = _link(args, "auto")
    rounds = common.Rounds(_algorithm(link, config, torch_device, args))
    found = {}
    for count in (50, 500):
        while rounds.t < count:
            rounds.run()
        torch.cuda.synchronize()
        found[str(count)] = {
            "allocated": torch.cuda.memory_allocated(),
            "pinned": torch.cuda.host_memory_stats()["allocated_bytes.current"],
        }
    if not link.is_server:
        return None
    return {"benchmark": "bytes after rounds", "bytes": found, "ranks": link.size}


# ---------------------------------------------------------------- parts


def configuration(graphs: Graphs, args: argparse.Namespace, route: Route = "auto") -> Config:
    config = Config()
    training = replace(
        config.training,
        rounds=10**6,  # after the last round of a configuration, nothing starts early
        graphs=graphs,
        batch_size=args.batch,
        generator_batch_size=args.batch,
        discriminator_steps=args.steps,
        generator_steps=args.steps,
        autocast=args.autocast,
        memory_format=args.memory_format,
    )
    config = replace(config, training=training, link=replace(config.link, route=route))
    return choose_by_size(config, (3, args.size, args.size))


def _link(args: argparse.Namespace, route: Route) -> tuple[Link, Config, str]:
    link, config = Link(), configuration("on", args, route)
    link.configure(config.link)
    torch_device = choose_torch_device(config, link)
    pair = build_networks(config, (3, args.size, args.size), torch_device)
    link.choose_route(torch_device, vector_lengths(config, pair))
    return link, config, torch_device


def _device(graphs: Graphs, args: argparse.Namespace) -> Device:
    config, shape = configuration(graphs, args), (3, args.size, args.size)
    pair = build_networks(config, shape, f"cuda:{torch.cuda.current_device()}")
    shard = common.noise_shard(shape, 4 * args.batch)
    return Device(1, Batches(shard, batch_size=args.batch, seed=0, device=1), pair, config)


def _algorithm(
    link: Link, config: Config, torch_device: str, args: argparse.Namespace
) -> Algorithm:
    shape = (3, args.size, args.size)
    pair = build_networks(config, shape, torch_device)
    return common.build_algorithm(link, config, pair, common.noise_shard(shape, 4 * args.batch))


def alternate(
    functions: dict[str, Callable[[], object]], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the seconds of a call of each function, by block. Block 0 warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for block in range(args.blocks + 1):
        for name, function in functions.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(args.repeats):
                function()
            torch.cuda.synchronize()
            if block > 0:
                seconds[name].append((time.perf_counter() - start) / args.repeats)
    return seconds


if __name__ == "__main__":
    main()
