"""Scores of a generator. Ranks share the work; sums of features leave a device, images never do."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Shard
from fedgan_mpi.evaluation.features import Classifier, Extractor, read_extractor
from fedgan_mpi.evaluation.frechet import Moments, frechet_distance
from fedgan_mpi.evaluation.pairs import Array, kernel_distance, neighbour_measures
from fedgan_mpi.federation.networks import NetworkPair
from fedgan_mpi.files import write_complete
from fedgan_mpi.random_streams import Purpose, numpy_stream, torch_stream
from fedgan_mpi.run.generator_file import to_pixels

CHUNK = 64  # generated images per random stream: streams belong to chunks, not to ranks
BLOCK = 256  # real images whose features are held at a time
COMMON = 0.01  # share above which a class counts as covered
PAIRS = ("kid", "prdc")
"""Metrics that need the features of single images."""


class Generate(Protocol):
    """A generator's images, uint8 (count, C, H, W): the same for the same chunk on any rank."""

    def __call__(self, *, count: int, chunk: int) -> NDArray[np.uint8]: ...


@dataclass(kw_only=True)
class RealImages:
    """Where the real images are: this rank's shards, and what is held out."""

    shards: Mapping[int, Shard]
    """Of the devices that this rank hosts."""
    images: Sequence[int]
    """Of device 1, 2, …, anywhere."""
    heldout: Shard | None
    """On the server, or on every rank if `heldout_everywhere`."""
    heldout_everywhere: bool
    directory: Path
    """Of the shards; sums are remembered there if it can be written."""
    sha256: str
    """Over all shards."""


class Scorer:
    """Measures of a generator against the devices' pooled real images, through each extractor.

    Statistics of the real images are added up once a set of shards, and kept beside them. With
    each value goes the floor: the same measure of as many held-out real images.
    """

    def __init__(
        self,
        link: Link,
        extractors: Sequence[Extractor],
        real: RealImages,
        *,
        metrics: Sequence[str],
        samples: int,
        seed: int,
    ) -> None:
        """Collective. metrics: of `evaluation.metrics`; samples: images of a score."""
        self.link, self.extractors, self.metrics = link, extractors, metrics
        self.samples, self.seed = samples, seed
        self.pairs = any(metric in PAIRS for metric in metrics)
        self.real = self._see_real(real)
        heldout = self.empty()
        if real.heldout is not None:
            every = link.size if real.heldout_everywhere else 1
            first = link.rank if real.heldout_everywhere else 0
            for start in range(first * BLOCK, samples, every * BLOCK):
                block = np.arange(start, min(start + BLOCK, samples))
                heldout.add(real.heldout.take(block), start)
        self.floors = self.measure(heldout)

    def see(self, generate: Generate, *, rank: int, size: int) -> FeatureSums:
        """This rank's part of the fakes, one of `size` parts, as the extractors see them."""
        seen = self.empty()
        for chunk in range(rank, -(-self.samples // CHUNK), size):
            count = min(CHUNK, self.samples - chunk * CHUNK)
            seen.add(generate(count=count, chunk=chunk), chunk * CHUNK)
        return seen

    def measure(self, part: FeatureSums) -> dict[str, float]:
        """Collective. All metrics of what the ranks have seen together; the same on every rank."""
        seen = part.over_ranks(self.link)
        values: dict[str, float] = {}
        for extractor, fake, real in zip(self.extractors, seen.views, self.real.views, strict=True):
            values[extractor.metric("frechet")] = frechet_distance(fake.moments, real.moments)
            if "classes" in self.metrics and extractor.classes:
                shares, real_shares = fake.class_shares, real.class_shares
                values["classes_covered"] = float((shares > COMMON).sum())
                values["class_total_variation"] = float(np.abs(shares - real_shares).sum() / 2)
            ranks: dict[str, Any] = {"rank": self.link.rank, "size": self.link.size}
            measured: dict[str, float] = {}
            if "kid" in self.metrics:
                measured |= kernel_distance(real.rows, fake.rows, **ranks, sum=self.link.sum)
            if "prdc" in self.metrics:
                measured |= neighbour_measures(real.rows, fake.rows, **ranks, sum=self.link.sum)
            values |= {extractor.metric(name): value for name, value in measured.items()}
        return values

    def lines(self, round: int, values: Mapping[str, float]) -> list[dict[str, Any]]:
        """Measured values as lines of stats.jsonl."""
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

    def empty(self, rows: int | None = None) -> FeatureSums:
        """The part of a rank that has seen no images yet."""
        rows = self.samples if rows is None else rows
        return FeatureSums(
            [FeatureStats(extractor, rows if self.pairs else 0) for extractor in self.extractors]
        )

    def _see_real(self, real: RealImages) -> FeatureSums:
        """All real images' sums, and the features of an even draw where pairs are measured."""
        ends = np.cumsum([0, *real.images])
        rows = min(self.samples, int(ends[-1]))
        # As many of each device as its part of all images: row numbers at which devices begin.
        first_row = ends * rows // ends[-1]
        memory = _Memory(real, self.extractors)
        known = self.link.from_server(lambda: memory.read() is not None)
        seen = self.empty(rows)
        for device, shard in real.shards.items():
            begin, end = first_row[device - 1], first_row[device]
            stream = numpy_stream(self.seed, Purpose.REAL_SCORE, device)
            drawn = np.sort(stream.choice(len(shard), end - begin, replace=False))
            for start in range(0, len(drawn) if self.pairs else 0, BLOCK):
                seen.add_rows(shard.take(drawn[start : start + BLOCK]), begin + start)
            for start in range(0, 0 if known else len(shard), BLOCK):
                seen.add_sums(shard.take(np.arange(start, min(start + BLOCK, len(shard)))))
        if known and self.link.is_server:
            for view, sums in zip(seen.views, memory.read() or [], strict=True):
                view.set_sums(sums)
        total = seen.over_ranks(self.link)
        if self.link.is_server and not known:
            memory.write([view.sums for view in total.views])
        return total


@torch.no_grad()
def generate(
    pair: NetworkPair, shown: Tensor, *, seed: int, count: int, purpose: Purpose, chunk: int
) -> NDArray[np.uint8]:
    """uint8 (count, C, H, W) from G with these parameters and statistics; the same images on
    whichever rank."""
    stream = torch_stream(seed, purpose, chunk)
    with pair.generator(shown):
        return to_pixels(pair.fakes(pair.noise(count, stream)).data)


def read_extractors(link: Link, path: Path | None, inception: str | None) -> list[Extractor]:
    """Collective. What the scores look through: the shards' own extractor, and Inception where the
    user has its file. Raises AgreedError for a wrong file."""

    def read() -> list[Extractor]:
        extractors: list[Extractor] = []
        if path is not None:
            extractors.append(read_extractor(path))
        if inception is not None:
            from fedgan_mpi.evaluation.inception import read_inception

            extractors.append(read_inception(Path(inception)))
        return extractors

    return link.on_every_rank(read)


class FeatureStats:
    """One extractor's view of a set of images: sums of features, a count of each class that a
    classifier sees and, where pairs are measured, the features of `rows` of them."""

    def __init__(self, extractor: Extractor, rows: int) -> None:
        self.extractor = extractor
        self.moments = Moments.zero(extractor.width)
        self.classes = np.zeros(extractor.classes)
        self.rows: Array = np.zeros((rows, extractor.width if rows else 0))

    @property
    def class_shares(self) -> Array:
        shares: Array = self.classes / self.classes.sum()
        return shares

    @property
    def sums(self) -> Array:
        return np.concatenate([self.classes, self.moments.pack()])

    def set_sums(self, numbers: Array) -> None:
        self.classes = numbers[: len(self.classes)]
        self.moments = Moments.unpack(numbers[len(self.classes) :], self.extractor.width)

    def add(self, images: NDArray[np.uint8], *, sums: bool, row: int | None) -> None:
        """Add images to the sums, and their features as rows from `row`."""
        features = self.extractor.features(torch.from_numpy(images))
        numbers = features.double().numpy()
        if sums:
            self.moments.add(numbers)
        if sums and isinstance(self.extractor, Classifier):
            seen = self.extractor.logits(features).argmax(1).numpy()
            self.classes += np.bincount(seen, minlength=len(self.classes))
        if row is not None and len(self.rows):
            self.rows[row : row + len(numbers)] = numbers


class FeatureSums:
    """A set of images, uint8 (N, C, H, W), as all extractors see it; a rank's part of it, or the
    whole."""

    def __init__(self, views: list[FeatureStats]) -> None:
        self.views = views

    def add(self, images: NDArray[np.uint8], row: int) -> None:
        """Add images to the sums, and their features as rows from `row`."""
        self._add(images, sums=True, row=row)

    def add_sums(self, images: NDArray[np.uint8]) -> None:
        self._add(images, sums=True, row=None)

    def add_rows(self, images: NDArray[np.uint8], row: int) -> None:
        self._add(images, sums=False, row=row)

    @torch.no_grad()
    def _add(self, images: NDArray[np.uint8], *, sums: bool, row: int | None) -> None:
        for view in self.views:
            view.add(images, sums=sums, row=row)

    def over_ranks(self, link: Link) -> FeatureSums:
        """Collective. What all ranks have seen."""
        total = []
        for view in self.views:
            sums = view.sums
            numbers = link.sum(np.concatenate([sums, view.rows.ravel()]))
            whole = FeatureStats(view.extractor, 0)
            whole.set_sums(numbers[: len(sums)])
            whole.rows = numbers[len(sums) :].reshape(view.rows.shape)
            total.append(whole)
        return FeatureSums(total)


class _Memory:
    """Sums of the real images, in a file beside the shards that is named by what they depend on.

    Where the directory cannot be written they are added up again in every job.
    """

    def __init__(self, real: RealImages, extractors: Sequence[Extractor]) -> None:
        names = [real.sha256, *(extractor.sha256 for extractor in extractors)]
        key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
        self.path = real.directory / ".statistics" / f"{key}.npz"
        self.lengths = [len(FeatureStats(extractor, 0).sums) for extractor in extractors]

    def read(self) -> list[Array] | None:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                sums = [file[name] for name in file.files]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        whole = [len(numbers) for numbers in sums] == self.lengths
        return sums if whole and all(np.isfinite(numbers).all() for numbers in sums) else None

    def write(self, sums: list[Array]) -> None:
        buffer = BytesIO()
        np.savez(buffer, *sums)
        try:
            self.path.parent.mkdir(exist_ok=True)
            write_complete(self.path, buffer.getvalue())
        except OSError:
            return
