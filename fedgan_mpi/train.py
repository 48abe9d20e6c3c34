"""The loop over rounds: round, record, score, checkpoint."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import numpy as np
import torch

from fedgan_mpi import __version__
from fedgan_mpi.algorithms import ALGORITHMS
from fedgan_mpi.algorithms.base import Algorithm, Ledger
from fedgan_mpi.cluster.link import AgreedError, Link
from fedgan_mpi.cluster.node import Node, build_node, build_pair
from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.evaluate import Scorer, generate
from fedgan_mpi.learning.networks import count_parameters
from fedgan_mpi.run.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from fedgan_mpi.run.export import BEST, FINAL, write_generator
from fedgan_mpi.run.record import Record
from fedgan_mpi.start import Start, scored_samples
from fedgan_mpi.streams import Purpose

GRID_IMAGES = 64


def train(link: Link, start: Start) -> None:
    """Collective. Train to the last round and leave a whole run directory behind."""
    began = time.perf_counter()
    config = start.config
    torch_device = choose_torch_device(config, link)
    set_threads(config, link)
    pair = build_pair(config, start.manifest.image_shape, torch_device)
    images = start.manifest.images if config.algorithm.name != "centralized" else [sum(start.manifest.images)]
    node = build_node(link, config, pair, start.shards, images)
    algorithm = ALGORITHMS[config.algorithm.name](node)

    progress: dict[str, Any] = {"images_seen": 0, "best": None}
    done = 0
    if start.resume:
        done, progress = _resume(node, start)
    record = Record(start.run if link.is_server else None, rounds=config.training.rounds, done=done)
    keeper = _Keeper(node, start, record, progress)
    if not start.resume:
        keeper.look(0)
        keeper.checkpoint(0)

    last = config.training.rounds
    for t in range(done, last):
        stats = play_round(algorithm, t, progress)
        record.round(stats)
        check_finite(stats, start)
        round = t + 1
        if round == last or _is_due(round, config.evaluation.every):
            keeper.look(round)
        if round == last or _is_due(round, config.checkpoint.every):
            keeper.checkpoint(round)

    record.close()
    if link.is_server:
        keeper.finish(time.perf_counter() - began)
    link.barrier()


def play_round(algorithm: Algorithm, t: int, progress: dict[str, Any]) -> dict[str, Any]:
    """Collective. One round, and its line of stats.jsonl, the same on every rank."""
    node, link = algorithm.node, algorithm.link
    algorithm.ledger = Ledger()
    link.reset_counters()
    start = time.perf_counter()
    algorithm.round(t)
    losses, times = _share(node, algorithm.ledger)
    seconds = time.perf_counter() - start

    participants = node.participation.participants(t)
    shares = node.participation.shares(t)
    steps = node.config.training.discriminator_steps
    progress["images_seen"] += steps * sum(node.batch_sizes[device - 1] for device in participants)
    flat, size = algorithm.flat, algorithm.flat.phi.element_size()
    payload = algorithm.payload(flat.theta.numel(), flat.phi.numel())
    d_loss = math.fsum(shares[device] * losses[device] for device in participants)
    g_loss = losses[0]
    return {
        "round": t + 1,
        "participants": participants,
        "d_loss": d_loss if steps else None,
        "g_loss": g_loss if node.config.training.generator_steps else None,
        "seconds": seconds,
        # A rank that waits in a verb for others counts that too; who came last did not wait.
        "seconds_downlink": float(times[:, 0].min()),
        "seconds_local": float(times[:, 2].max()),
        "seconds_uplink": float(times[:, 1].min()),
        "seconds_server": float(times[:, 3].max()),
        "bytes_down": payload.down * size * len(participants),
        "bytes_up": payload.up * size * len(participants),
        # BatchNorm statistics and averaged moments, beside the parameters.
        "bytes_down_other": (link.bytes_down - payload.down * size) * len(participants),
        "bytes_up_other": (link.bytes_up - payload.up * size) * len(participants),
        "images_seen": progress["images_seen"],
    }


def _share(node: Node, ledger: Ledger) -> tuple[dict[int, float], np.ndarray]:
    """Collective. Every device's loss (0: the server's) and every rank's times, on every rank.

    Each number has one rank that knows it, so the sum over ranks is exact.
    """
    link, devices = node.link, node.participation.devices
    losses = np.zeros(devices + 1)
    for device, loss in ledger.d_loss.items():
        losses[device] = loss
    if link.is_server:
        losses[0] = ledger.g_loss
    times = np.zeros((link.size, 4))
    mine = (link.seconds_down, link.seconds_up, ledger.seconds_local, ledger.seconds_server)
    times[link.rank] = mine
    numbers = link.sum(np.concatenate([losses, times.ravel()]))
    return dict(enumerate(numbers[: devices + 1].tolist())), numbers[devices + 1 :].reshape(times.shape)


def check_finite(stats: dict[str, Any], start: Start) -> None:
    """Raises AgreedError on every rank where a loss is not a number: the last checkpoint is still good."""
    for key in ("d_loss", "g_loss"):
        if stats[key] is not None and not math.isfinite(stats[key]):
            round = stats["round"]
            raise AgreedError(
                f"{key} is {stats[key]} in round {round}; the last checkpoint in {start.run} is intact; "
                "lower the learning rates, or look at the shards"
            )


class _Keeper:
    """Scores, grids, exported generators and checkpoints at the rounds where they are due."""

    def __init__(self, node: Node, start: Start, record: Record, progress: dict[str, Any]) -> None:
        self.node, self.start, self.record, self.progress = node, start, record, progress
        self.scorer: Scorer | None = None
        self.last_scores: list[dict[str, Any]] = []
        features = start.manifest.features
        heldout_images = start.manifest.heldout_images
        if features is not None and heldout_images:
            samples = node.link.from_server(lambda: scored_samples(start.config, start.heldout))  # type: ignore[arg-type]
            self.scorer = Scorer(node, start.directory / features, start.heldout, samples)
        else:
            record.say(f"{start.directory} has no feature extractor or no held-out images: no scores")

    def look(self, round: int) -> None:
        """Collective. Score and draw the generator; keep it where it is the best so far."""
        if self.scorer is not None:
            self.last_scores = self.scorer.score(round)
            for score in self.last_scores:
                self.record.score(score)
            value = self.last_scores[0]["value"]
            best = self.progress["best"]
            if best is None or value < best["value"]:
                self.progress["best"] = {"round": round, "value": value}
                self._export(BEST, round)
        if self.node.link.is_server:
            self.node.pair.G.eval()
            self.record.grid(round, generate(self.node, GRID_IMAGES, Purpose.GRID, 0))
            self.node.pair.G.train()

    def checkpoint(self, round: int) -> None:
        """Collective."""
        keep_last = self.start.config.checkpoint.keep_last
        save_checkpoint(self.node, self.start.run, round, self.progress, keep_last)

    def finish(self, seconds: float) -> None:
        """On the server: the final generator, the report, and the last lines."""
        from fedgan_mpi.report.page import write_report

        config = self.start.config
        self._export(FINAL, config.training.rounds)
        write_report(self.start.run)
        for score in self.last_scores:
            text = f"{score['metric']} {score['value']:.4g} (held-out real images: {score['floor']:.4g})"
            self.record.say(f"{text}, {score['samples']} images")
        self.record.say(f"{seconds:.1f} s for training, {config.training.rounds} rounds")
        self.record.say(str(self.start.run))

    def _export(self, name: str, round: int) -> None:
        if not self.node.link.is_server:
            return
        channels, size, _ = self.start.manifest.image_shape
        model = self.start.config.model
        about = {
            "architecture": model.architecture,
            "size": size,
            "channels": channels,
            "nz": model.nz,
            "width": model.width,
            "parameters": count_parameters(self.node.pair.G),
            "output": "images in [-1, 1], RGB or gray, channels first",
            "round": round,
            "scores": [score for score in self.last_scores if score["round"] == round],
            "dataset": self.start.manifest.dataset,
            "shards_sha256": self.start.manifest.sha256,
            "fedgan_mpi": __version__,
        }
        write_generator(self.start.run, name, self.node.pair.G, about)


def _resume(node: Node, start: Start) -> tuple[int, dict[str, Any]]:
    checkpoint = node.link.from_server(lambda: newest_checkpoint(start.run))
    problem, loaded = None, (0, {})
    try:
        loaded = load_checkpoint(node, checkpoint)
    except UserError as error:
        problem = str(error)
    node.link.agree(problem)
    return loaded


def _is_due(round: int, every: int) -> bool:
    return every > 0 and round % every == 0


def choose_torch_device(config: Config, link: Link) -> str:
    """The GPU of this rank's place on its machine, or the CPU."""
    wanted = config.training.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    torch_device = f"cuda:{link.rank_here % torch.cuda.device_count()}"
    torch.cuda.set_device(torch_device)
    return torch_device


def set_threads(config: Config, link: Link) -> None:
    """One OpenMP thread a rank unless cores allow more; OMP_NUM_THREADS, where the user set it, is obeyed.

    In the serial schedule the devices sleep while the server computes, so it takes all cores. Where
    results must not depend on the number of ranks, device ranks keep to one thread: sums over threads round differently.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    serial = config.algorithm.name == "centralized" or config.algorithm.schedule == "serial"
    if link.is_server and serial:
        threads = link.cores_here
    elif config.link.average == "gather":
        threads = 1
    else:
        threads = max(1, link.cores_here // link.ranks_here)
    torch.set_num_threads(threads)
