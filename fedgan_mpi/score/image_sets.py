"""Sets of images that can be scored: a folder, the shards of a data set, a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.pictures.settings import NeedsRange, PictureSettings
from data_prep.sources.base import BadImage
from data_prep.sources.files import open_files, read_image
from data_prep.sources.folder import find_images
from data_prep.sources.image_file import decode_image_file
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config.io import read_config
from fedgan_mpi.data import MANIFEST, Images, Manifest
from fedgan_mpi.data.loading import MAX_SAMPLES, read_shards
from fedgan_mpi.data.shard import read_shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.feature_stats import FeatureStats
from fedgan_mpi.evaluation.features import BLOCK, Extractor
from fedgan_mpi.evaluation.generation import CHUNK
from fedgan_mpi.evaluation.image_classes import ImageClasses, Labels
from fedgan_mpi.evaluation.real_images import RealImages, labels_of, pooled_stats
from fedgan_mpi.run.generator_about import shape_of
from fedgan_mpi.run.generator_file import find_generator, load

_EIGHT_BITS = PictureSettings(needs_range=True)
"""Refuses images of more bits, whose range of values is not known here."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is computed of a set."""

    samples: int
    """Number of images."""
    rows: int = 0
    """Images whose single features are kept, at most `samples`."""
    own_rows: int = 0
    """Images of each device whose features stay on a rank."""
    seed: int = 0
    """For the choice of these images among those of devices."""
    classes: ImageClasses | None = None
    """Rule of the images' classes, if a metric needs them."""


class ImageSet(ABC):
    """Images of one size. Each rank reads or draws a part of them."""

    shape: tuple[int, int, int]
    features: Path | None = None
    """File of the extractor that belongs to the images."""
    uses_all = False
    """Whether the statistics are of all images, whatever the number of samples."""
    classes = 0
    """Number of classes, if the images have labels."""
    is_conditional = False
    """Whether a generator is asked for classes, which are then the labels of its images."""
    seed = 0
    """Of the run, for a generator."""

    def __init__(self, path: Path, images: int | None) -> None:
        """images: None for a generator, which has any number."""
        self.path, self.images = path, images

    @abstractmethod
    def statistics(
        self, link: Link, extractors: Sequence[Extractor], wanted: Wanted
    ) -> FeatureStats:
        """Return the statistics over all ranks. Collective."""


class Blocks(ImageSet):
    """Images that any rank can get by their number."""

    block = BLOCK
    """Images in a call of `read`."""

    @abstractmethod
    def read(self, start: int, count: int) -> tuple[Images, Labels | None]:
        """Return images, (count, C, H, W), and their labels if they have any.

        start: a multiple of `block`.
        """

    def statistics(
        self, link: Link, extractors: Sequence[Extractor], wanted: Wanted
    ) -> FeatureStats:
        def accumulate() -> FeatureStats:
            local = FeatureStats.empty(extractors, wanted.rows, wanted.classes)
            for start in range(link.rank * self.block, wanted.samples, link.size * self.block):
                images, labels = self.read(start, min(self.block, wanted.samples - start))
                local.accumulate(images, labels, row=start)
            return local

        return link.on_every_rank(accumulate).finish(link)


class Folder(Blocks):
    """The pictures below a folder or in an archive, in the order of their names."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if there are none, or if the first one is unreadable."""
        self._files = open_files(path)
        self._names, _, _ = find_images(self._files)
        if not self._names:
            raise UserError(f"{path} holds no images")
        super().__init__(path, len(self._names))
        first = self._decode(0)
        self.shape = (first.shape[0], first.shape[1], first.shape[2])

    def read(self, start: int, count: int) -> tuple[Images, None]:
        images = [self._decode(index) for index in range(start, start + count)]
        for index, image in enumerate(images, start):
            if image.shape != self.shape:
                raise UserError(
                    f"{self.path}: {self._names[index]} has {_size(image.shape)}, but "
                    f"{self._names[0]} has {_size(self.shape)}; a set needs images of one size and "
                    "one mode"
                )
        return np.stack(images), None

    def _decode(self, index: int) -> Images:
        name = self._names[index]
        try:
            content = read_image(self._files, name)
            image = np.asarray(decode_image_file(name, content, _EIGHT_BITS))
        except BadImage as error:
            raise UserError(f"{self.path}: {error}") from None
        except NeedsRange:
            raise UserError(
                f"{self.path}: {name} has more than 8 bits; convert the images with data_prep"
            ) from None
        return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


class ShardFile(Blocks):
    """One shard, such as the held-out images: an .h5 file beside its shards.json."""

    def __init__(self, path: Path) -> None:
        manifest = Manifest.read(path.parent)
        self.shape, self.features = manifest.image_shape, manifest.extractor_file(path.parent)
        self._shard = read_shard(path, image_shape=manifest.image_shape, dtype=manifest.dtype)
        super().__init__(path, len(self._shard))
        self.classes = 0 if self._shard.labels is None else len(manifest.class_names)

    def read(self, start: int, count: int) -> tuple[Images, Labels | None]:
        indices = np.arange(start, start + count)
        return self._shard.take(indices), labels_of(self._shard, indices)


class Generator(Blocks):
    """The images of a generator that `evaluate` scores."""

    block = CHUNK

    def __init__(self, path: Path, networks: str | None) -> None:
        super().__init__(path, None)
        self._generator = load(path, networks)
        self.shape = shape_of(self._generator.about)
        self.classes = self._generator.classes
        self.is_conditional = self.classes > 0
        if (path / "config.toml").exists():
            self.seed = read_config(path / "config.toml").run.seed
        shards = path / "shards"
        if (shards / MANIFEST).exists():
            self.features = Manifest.read(shards).extractor_file(shards)

    def read(self, start: int, count: int) -> tuple[Images, Labels | None]:
        return self._generator.scored_chunk(count, start // CHUNK, seed=self.seed)


class Shards(ImageSet):
    """The images of all devices of a data set. Their sums are cached, and always of all images."""

    uses_all = True

    def __init__(self, path: Path, link: Link) -> None:
        manifest = Manifest.read(path)
        super().__init__(path, sum(manifest.images))
        self.shape, self.features = manifest.image_shape, manifest.extractor_file(path)
        self.classes = len(manifest.class_names)
        devices = range(link.rank + 1, manifest.devices + 1, link.size)
        self._real = RealImages(
            shards=read_shards(path, manifest, devices, in_memory=False),
            images=manifest.images,
            heldout=None,
            heldout_everywhere=True,
            directory=path,
            sha256=manifest.sha256,
        )

    def statistics(
        self, link: Link, extractors: Sequence[Extractor], wanted: Wanted
    ) -> FeatureStats:
        empty = FeatureStats.empty(extractors, wanted.rows, wanted.classes)
        own_rows, seed = wanted.own_rows, wanted.seed
        return pooled_stats(link, self._real, empty, own_rows=own_rows, seed=seed)


def open_set(link: Link, path: Path, networks: str | None) -> ImageSet:
    """Open a set of images. Collective.

    networks: Import string of a generator's networks, if they are neither built in nor installed.

    Raises AgreedError if the path is missing, or is nothing that can be scored.
    """

    def kind() -> str:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if path.suffix == ".safetensors" or (path / "config.toml").exists():
            find_generator(path)
            return "generator"
        if path.suffix == ".h5":
            return "shard"
        return "shards" if (path / MANIFEST).exists() else "folder"

    openers: dict[str, Callable[[], ImageSet]] = {
        "generator": partial(Generator, path, networks),
        "shard": partial(ShardFile, path),
        "shards": partial(Shards, path, link),
        "folder": partial(Folder, path),
    }
    return link.on_every_rank(openers[link.from_server(kind)])


def default_samples(a: ImageSet, b: ImageSet) -> int:
    """Return the images that a generator draws: as many as the other set has, at most 10,000."""
    return min(min(each.images or MAX_SAMPLES for each in (a, b)), MAX_SAMPLES)


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}×{width} pixels and {channels} channels"
