"""Scores of the generator in training. Ranks share the work; sums of features leave a device,
images never do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan_mpi.cluster.node import Node
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import Classifier, Extractor, read_extractor
from fedgan_mpi.evaluation.frechet import Moments, frechet_distance
from fedgan_mpi.run.export import to_pixels
from fedgan_mpi.shards import Shard
from fedgan_mpi.streams import Purpose, torch_stream

CHUNK = 64  # generated images per random stream: streams belong to chunks, not to ranks
BLOCK = 256  # real images whose features are held at a time
COMMON = 0.01  # share above which a class counts as covered


class Scorer:
    """Fréchet distance to the devices' pooled images and, where the extractor knows classes, which
    of them the fakes cover.

    Statistics of the real images are added up once. With each value goes the floor: the same
    measure of as many held-out real images.
    """

    def __init__(self, node: Node, extractor: Path, heldout: Shard | None, samples: int) -> None:
        """Collective. heldout: on the server alone. Raises AgreedError for a wrong extractor."""
        self.node, self.samples = node, samples
        problem = None
        try:
            self.network: Extractor = read_extractor(extractor)
        except UserError as error:
            problem = str(error)
        node.link.agree(problem)
        real = _Sums(self.network)
        for device in node.devices:
            real.add_shard(device.batches.shard, len(device.batches.shard))
        self.real = real.over_ranks(node)
        floor = _Sums(self.network)
        if heldout is not None:
            floor.add_shard(heldout, samples)
        self.floors = self._measure(floor.over_ranks(node))

    def score(self, round: int) -> list[dict[str, Any]]:
        """Collective. The scores of the server's generator, as lines of stats.jsonl; the same on
        every rank."""
        node = self.node
        fakes = _Sums(self.network)
        with node.shown_generator():
            node.link.broadcast(node.pair.flat.whole_generator, counted=False)
            for chunk in range(node.link.rank, -(-self.samples // CHUNK), node.link.size):
                count = min(CHUNK, self.samples - chunk * CHUNK)
                fakes.add(generate(node, count, Purpose.SCORE, chunk))
        values = self._measure(fakes.over_ranks(node))
        return [
            {
                "round": round,
                "metric": name,
                "value": value,
                "floor": floor,
                "samples": self.samples,
            }
            for (name, value), floor in zip(values.items(), self.floors.values(), strict=True)
        ]

    def _measure(self, sums: _Sums) -> dict[str, float]:
        distance = {self.network.metric: frechet_distance(sums.moments, self.real.moments)}
        if not self.network.classes:
            return distance
        shares = sums.classes / sums.classes.sum()
        real_shares = self.real.classes / self.real.classes.sum()
        return {
            **distance,
            "classes_covered": float((shares > COMMON).sum()),
            "class_total_variation": float(np.abs(shares - real_shares).sum() / 2),
        }


@torch.no_grad()
def generate(node: Node, count: int, purpose: Purpose, chunk: int) -> NDArray[np.uint8]:
    """uint8 (count, C, H, W) from the rank's G as it stands, the same images on whichever rank."""
    stream = torch_stream(node.config.run.seed, purpose, chunk)
    return to_pixels(node.pair.fakes(node.pair.noise(count, stream)).data)


class _Sums:
    """Sums over images: moments of their features, and a count of each class that a classifier
    sees."""

    def __init__(self, network: Extractor) -> None:
        self._network = network
        self.moments = Moments.zero(network.width)
        self.classes = np.zeros(network.classes)

    @torch.no_grad()
    def add(self, images: NDArray[np.uint8]) -> None:
        features = self._network.features(torch.from_numpy(images))
        self.moments.add(features.double().numpy())
        if isinstance(self._network, Classifier):
            seen = self._network.logits(features).argmax(1).numpy()
            self.classes += np.bincount(seen, minlength=len(self.classes))

    def add_shard(self, shard: Shard, count: int) -> None:
        """The shard's first `count` images."""
        for start in range(0, count, BLOCK):
            self.add(shard.take(np.arange(start, min(start + BLOCK, count))))

    def over_ranks(self, node: Node) -> _Sums:
        """Collective. The same sums over all ranks' images."""
        width = len(self.moments.total)
        numbers = node.link.sum(np.concatenate([self.classes, self.moments.pack()]))
        total = _Sums(self._network)
        total.classes = numbers[: len(self.classes)]
        total.moments = Moments.unpack(numbers[len(self.classes) :], width)
        return total
