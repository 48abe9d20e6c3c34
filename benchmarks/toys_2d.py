"""Trains every algorithm on two-dimensional toy data: modes found, and distance to the target.

    mpirun -n 3 python benchmarks/toys_2d.py --out docs/images/toys

Two ranks host eight devices. A point is an image of two channels and one pixel, so that shards,
batches, rounds and the link work as in any job. Only networks and plots are defined here. Every
algorithm takes the same number of local D steps. Writes toys.json, toys.md and a plot per setting.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import torch
from methods import METHODS, sgd_methods
from numpy.typing import NDArray
from torch import nn

from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.cli.parser import parse_train
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Shard, union
from fedgan_mpi.data.loading import hosted_devices
from fedgan_mpi.federation.networks import pack_networks
from fedgan_mpi.federation.rank import RankState, build_rank_state
from fedgan_mpi.nn.losses import LOSSES
from fedgan_mpi.nn.registry import initialize
from fedgan_mpi.random_streams import Purpose, torch_stream
from fedgan_mpi.run.figures import new_figure, write_figure

DEVICES, POINTS, NZ, WIDTH = 8, 512, 2, 64
SAMPLES = 512
RADIUS, SPREAD = 0.7, 0.03
LOCAL_STEPS = 5
"""Local steps per round of algorithms whose devices train G, too (FedGAN and FeGAN)."""
_REN5 = ["--algorithm.name=ren", f"--training.generator_steps={LOCAL_STEPS}"]
_MIXTURES = {
    f"{name} {mode}": [f"--algorithm.name={name}", f"--algorithm.mode={mode}"]
    for name, modes in (
        ("uagan", ("mean", "max", "softmax", "odds")),
        ("ensemble", ("mean", "max", "odds")),
    )
    for mode in modes
}
_MIXTURES["uagan softmax"].append("--algorithm.sharpness=5")
ALGORITHM_FLAGS: dict[str, list[str]] = {
    "centralized": ["--algorithm.name=centralized"],
    "ren serial": ["--algorithm.name=ren"],
    "ren parallel": ["--algorithm.name=ren", "--algorithm.schedule=parallel"],
    "fedgan": ["--algorithm.name=fedgan"],
    "fegan": ["--algorithm.name=fegan"],
    "fegan ifl": ["--algorithm.name=fegan", "--algorithm.preset=ifl"],
    "fess_gda": ["--algorithm.name=fess_gda"],
    "dp_fedavg_gan": ["--algorithm.name=dp_fedavg_gan"],
    "mdgan": ["--algorithm.name=mdgan"],
    **_MIXTURES,
    "ren5": _REN5,
    **{
        f"ren5, {name}": [*_REN5, *flags] for name, flags in {**METHODS, **sgd_methods(0.1)}.items()
    },
}
Points = NDArray[np.float64]


def ring(stream: np.random.Generator, count: int) -> tuple[Points, NDArray[np.int64]]:
    """Return points of eight Gaussians on a circle, and the Gaussian of each point."""
    modes = stream.integers(0, 8, count)
    angle = modes * np.pi / 4
    centres = RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
    return centres + stream.normal(0, SPREAD, (count, 2)), modes


def roll(stream: np.random.Generator, count: int) -> tuple[Points, NDArray[np.int64]]:
    """Return points of a Swiss roll, and the eighth of its length in which each point is."""
    position = stream.uniform(0, 1, count)
    angle = 1.5 * np.pi * (1 + 2 * position)
    points = (angle / 15)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points + stream.normal(0, 0.015, (count, 2)), (position * 8).astype(np.int64)


TARGETS = {"ring": ring, "roll": roll}
SETTINGS = {
    "ring, IID": ("ring", False),
    "ring, one mode a device": ("ring", True),
    "roll, IID": ("roll", False),
    "roll, one eighth a device": ("roll", True),
}


def make_shards(target: str, skewed: bool, seed: int) -> dict[int, Shard]:
    """Return {device: shard}. skewed: device k has only mode k."""
    stream = np.random.default_rng(seed)
    points, modes = TARGETS[target](stream, 16 * DEVICES * POINTS)
    shards = {}
    for device in range(1, DEVICES + 1):
        owners = modes if skewed else np.arange(len(points)) % DEVICES
        chosen = np.flatnonzero(owners == device - 1)[:POINTS]
        pixels = np.clip(np.rint((points[chosen] + 1) * 127.5), 0, 255).astype(np.uint8)
        shards[device] = Shard(
            path=Path(f"{target}_{device}"),
            images=pixels[:, :, None, None],
            labels=modes[chosen],
            sha256="",
        )
    return shards


class Perceptron(nn.Module):
    """Two hidden layers."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, WIDTH),
            activation(),
            nn.Linear(WIDTH, WIDTH),
            activation(),
            nn.Linear(WIDTH, outputs),
        )


class PointGenerator(Perceptron):
    def __init__(self) -> None:
        super().__init__(NZ, 2, nn.ReLU)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layers(z))[:, :, None, None]


class PointDiscriminator(Perceptron):
    def __init__(self) -> None:
        super().__init__(2, 1, nn.ReLU)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(points.flatten(1)).flatten()
        return logits


def configure(flags: list[str], seed: int, steps: int) -> Config:
    """Return a configuration with `steps` local D steps in all and as many steps of G.

    A round has one step, or LOCAL_STEPS if the devices train G, too, or the flags say so.
    """
    config = parse_train(flags).config
    training, traits = config.training, config.algorithm.traits
    per_round = LOCAL_STEPS if traits.devices_train_generator else training.generator_steps or 1
    return replace(
        config,
        run=replace(config.run, seed=seed),
        model=replace(config.model, ema=0.99),
        training=replace(
            training,
            rounds=steps // per_round,
            discriminator_steps=per_round,
            generator_steps=None if traits.sets_generator_steps else per_round,
            batch_size=64,
            generator_batch_size=64,
            generator_lr=training.generator_lr or 2e-3,
            discriminator_lr=training.discriminator_lr or 2e-3,
            loss="nonsaturating",
        ),
    )


def run(link: Link, config: Config, shards: dict[int, Shard]) -> Points:
    """Train, and return points of the generator; empty on device ranks. Collective."""
    stream = torch_stream(config.run.seed, Purpose.PARAMETERS)
    G, D = PointGenerator(), PointDiscriminator()
    for network in (G, D):
        initialize(network, "fan_in", stream)
    loss = LOSSES[config.training.loss_name]
    pair = pack_networks(G, D, nz=NZ, image_shape=(2, 1, 1), loss=loss, config=config)
    images = [len(shard) for shard in shards.values()]
    classes = [shard.labels for shard in shards.values() if shard.labels is not None]
    assert len(classes) == len(shards)
    histograms = [np.bincount(labels, minlength=8).tolist() for labels in classes]
    if config.algorithm.name == "centralized":
        hosted = {1: union(list(shards.values()), Path("all"))} if link.is_server else {}
        images = [sum(images)]
    else:
        hosted = {k: shards[k] for k in hosted_devices(len(shards), link.rank, link.device_ranks)}
    rank_state = build_rank_state(link, config, pair, hosted, images, histograms)
    algorithm = ALGORITHMS[config.algorithm.name](rank_state)
    rounds = common.Rounds(algorithm)
    for _ in range(config.training.rounds):
        rounds.run()
    return sample(rank_state) if link.is_server else np.empty((0, 2))


def sample(rank_state: RankState) -> Points:
    with rank_state.pair.generator(rank_state.evaluated_generator):
        noise = rank_state.pair.noise(SAMPLES, torch_stream(0, Purpose.GRID))
        return rank_state.pair.fakes(noise).data.flatten(1).double().numpy()


def measure(target: str, points: Points) -> dict[str, float]:
    """Return modes with at least 1 % of the points, the share of points near the target, and the
    exact Wasserstein-1 distance to as many new points of the target."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    fresh, modes = TARGETS[target](np.random.default_rng(12345), SAMPLES)
    cost = cdist(points, fresh)
    rows, columns = linear_sum_assignment(cost)
    many, modes = TARGETS[target](np.random.default_rng(54321), 20_000)
    far = cdist(points, many)
    near = far.min(1) < 3 * SPREAD
    found = np.bincount(modes[far.argmin(1)][near], minlength=8)
    return {
        "modes": int((found >= 0.01 * len(points)).sum()),
        "near": float(near.mean()),
        "distance": float(cost[rows, columns].mean()),
    }


def draw(path: Path, target: str, clouds: dict[str, Points]) -> None:
    """Draw a panel per algorithm: the target in gray, and the fakes of the first seed."""
    columns = 4
    rows = -(-len(clouds) // columns)
    figure = new_figure(2.3 * columns, 2.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    fresh, _ = TARGETS[target](np.random.default_rng(0), 2000)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, (name, points) in zip(panels.flat, clouds.items(), strict=False):
        panel.scatter(*fresh.T, s=1, color="0.8", rasterized=True)
        panel.scatter(*points.T, s=2, color="tab:blue", rasterized=True)
        panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
        panel.set_title(name, fontsize=10)
    write_figure(figure, path)


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Return a Markdown table of means ± standard deviations over seeds: a row per algorithm."""
    settings = list(results)
    head = " | ".join(f"{s}: modes | near | distance" for s in settings)
    lines = [f"| | {head} |", "|---" * (1 + 3 * len(settings)) + "|"]
    for name in results[settings[0]]:
        cells = []
        for setting in settings:
            for key, digits in (("modes", 1), ("near", 2), ("distance", 3)):
                values = np.array([score[key] for score in results[setting][name]])
                cells.append(f"{values.mean():.{digits}f} ± {values.std():.{digits}f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("toys"), help="directory of the results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1200, help="local D steps of a device")
    parser.add_argument("--only", default="", help="part of the names of settings or algorithms")
    args = parser.parse_args()
    torch.set_num_threads(1)
    link = Link()
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for setting, (target, skewed) in SETTINGS.items():
        clouds: dict[str, Points] = {}
        for name, flags in ALGORITHM_FLAGS.items():
            if args.only not in f"{setting} {name}":
                continue
            for seed in range(args.seeds):
                start = time.perf_counter()
                config = configure(flags, seed, args.steps)
                points = run(link, config, make_shards(target, skewed, seed))
                if not link.is_server:
                    continue
                clouds.setdefault(name, points)
                seconds = time.perf_counter() - start
                scores = {**measure(target, points), "seconds": seconds}
                results.setdefault(setting, {}).setdefault(name, []).append(scores)
                print(setting, "|", name, seed, json.dumps(scores), flush=True)
        if clouds:
            args.out.mkdir(parents=True, exist_ok=True)
            draw(args.out / f"{setting.replace(', ', '_').replace(' ', '_')}.png", target, clouds)
            (args.out / "toys.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.out / "toys.md").write_text(table(results))


if __name__ == "__main__":
    main()
