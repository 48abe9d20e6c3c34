"""Trained generators as files: parameters in NAME.safetensors, the architecture in NAME.json.

Knows nothing of MPI or of the run that trained the generator.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from fedgan_mpi import plugins
from fedgan_mpi.data import Images, PixelType, white
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.hardware.memory import memory_limit
from fedgan_mpi.nn.registry import build_from
from fedgan_mpi.nn.steps import Batch
from fedgan_mpi.nn.stored_shapes import check_stored_shapes
from fedgan_mpi.random_streams import Purpose, torch_stream
from fedgan_mpi.run.generator_about import read_about, shape_of

FINAL = "generator"
BEST = "generator_best"
_KEY = "model.architecture"
_BATCH = 256  # images generated at once


@dataclass(kw_only=True)
class TrainedGenerator:
    """A trained generator. Call it with a number of images."""

    network: nn.Module
    about: dict[str, Any]
    """Content of the JSON file."""
    truncation: float | None = None
    """Largest component of z: a smaller one gives more typical and less varied images (Brock et al.
    2019, arXiv:1809.11096). None: z is not truncated."""

    @torch.no_grad()
    def __call__(self, count: int, *, seed: int = 0, label: int | None = None) -> Images:
        """Return generated images, `dtype` (count, C, H, W). Equal seeds give equal images.

        label: the class of all images; None: classes as frequent as in the data. Raises UserError
        if the generator has no such class.
        """
        self.check_count(count)
        return self._draw(count, torch_stream(seed, Purpose.GRID), label)[0]

    @torch.no_grad()
    def scored_chunk(
        self, count: int, chunk: int, *, seed: int = 0
    ) -> tuple[Images, NDArray[np.int64] | None]:
        """Return a chunk of the images of scores, (count, C, H, W), as training scores them, and
        their classes, (count,), if the generator is conditional."""
        return self._draw(count, torch_stream(seed, Purpose.SCORE, chunk), None)

    def _draw(
        self, count: int, stream: torch.Generator, label: int | None
    ) -> tuple[Images, NDArray[np.int64] | None]:
        noise = self._noise(count, stream).split(_BATCH)
        classes = self._one_hot_batches(count, stream, label)
        batches = [Batch(z, y) for z, y in zip(noise, classes, strict=True)]
        images = np.concatenate([self._to_pixels(batch) for batch in batches])
        codes = [y for y in classes if y is not None]
        return images, torch.cat(codes).argmax(1).numpy() if codes else None

    def check_count(self, count: int) -> None:
        """Raise UserError if `count` images do not fit into memory."""
        pixels = math.prod(shape_of(self.about)) * np.dtype(self.dtype).itemsize
        image = 2 * pixels + 4 * self.about["nz"] + 16 * self.classes
        most = memory_limit() // 2 // image
        if count > most:
            raise UserError(
                f"count is {count}, but must be at most {most}: more images do not fit into the "
                "memory of this machine"
            )

    @property
    def dtype(self) -> PixelType:
        """Type of the pixels, as in the shards of the training."""
        dtype: PixelType = self.about.get("dtype", "uint8")
        return dtype

    def _to_pixels(self, batch: Batch) -> Images:
        return to_pixels(batch.through(self.network), self.dtype)

    @property
    def classes(self) -> int:
        """Number of classes; 0 if the generator is unconditional."""
        return len(self.about.get("class_shares") or ())

    @property
    def class_names(self) -> list[str]:
        """Names of the classes. Raises UserError if the generator is unconditional."""
        if self.about.get("class_shares") is None:
            raise UserError("this generator has no classes; train with --model.conditional true")
        names: list[str] = self.about["class_names"]
        return names

    @torch.no_grad()
    def interpolate(self, rows: int, columns: int, *, seed: int = 0) -> Images:
        """Return rows of images between two noise vectors each, (rows · columns, C, H, W).

        Spherical interpolation: the vectors of a row are on the great circle through its ends, so
        that they are as probable as random noise. A row has one class.
        """
        stream = torch_stream(seed, Purpose.GRID)
        ends = self._noise(2 * rows, stream).view(2, rows, -1)
        drawn = [y for y in self._one_hot_batches(rows, stream, None) if y is not None]
        classes = torch.cat(drawn) if drawn else None
        images = []
        for row in range(rows):
            a, b = ends[:, row]
            angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
            t = torch.linspace(0, 1, columns)[:, None]
            z = ((1 - t) * angle).sin() * a + (t * angle).sin() * b
            y = classes[row].expand(columns, -1) if classes is not None else None
            images.append(self._to_pixels(Batch(z / angle.sin(), y)))
        return np.concatenate(images)

    @torch.no_grad()
    def with_standing_statistics(self, batches: int, *, seed: int = 0) -> TrainedGenerator:
        """Return a copy whose BatchNorm has the statistics of this many batches of its own images.

        Those of training are moving averages, and means over devices (Brock et al. 2019, appendix
        B). Raises UserError if the generator has no BatchNorm.
        """
        network = copy.deepcopy(self.network)
        layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not layers:
            raise UserError("this generator has no BatchNorm, so it has no statistics to compute")
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        stream = torch_stream(seed, Purpose.STANDING)
        for _ in range(batches):
            z, (y,) = self._noise(_BATCH, stream), self._one_hot_batches(_BATCH, stream, None)
            Batch(z, y).through(network)
        return dataclasses.replace(self, network=network.eval())

    def _noise(self, count: int, stream: torch.Generator) -> torch.Tensor:
        """Draw z, (count, nz), from N(0, 1), or from its part between the bounds."""
        shape = (count, self.about["nz"])
        if self.truncation is None:
            return torch.randn(shape, generator=stream)
        inside = math.erf(self.truncation / math.sqrt(2))
        quantiles = (2 * torch.rand(shape, generator=stream, dtype=torch.float64) - 1) * inside
        z = math.sqrt(2) * torch.erfinv(quantiles)
        return z.clamp(-self.truncation, self.truncation).float()

    def _one_hot_batches(
        self, count: int, stream: torch.Generator, label: int | None
    ) -> list[torch.Tensor | None]:
        """Return one-hot classes per batch of images; None if the generator is unconditional."""
        shares = self.about.get("class_shares")
        last = len(shares or ()) - 1
        if label is not None and not 0 <= label <= last:
            right = f"from 0 to {last}" if shares else "left out: this generator has no classes"
            raise UserError(f"label is {label}, but must be {right}")
        if shares is None:
            return [None] * math.ceil(count / _BATCH)
        weights = torch.tensor(shares, dtype=torch.float64)
        drawn = weights.multinomial(count, replacement=True, generator=stream)
        labels = drawn if label is None else torch.full_like(drawn, label)
        return list(nn.functional.one_hot(labels, len(shares)).float().split(_BATCH))


def to_pixels(images: torch.Tensor, dtype: PixelType) -> Images:
    """Convert images in [-1, 1] to a type of pixels, rounded to the nearest value."""
    most = white(dtype)
    rounded = images.add(1).mul(most / 2).round().clamp(0, most)
    pixels: Images = rounded.to(getattr(torch, dtype)).cpu().numpy()
    return pixels


def write_generator(directory: Path, name: str, G: nn.Module, about: dict[str, Any]) -> None:
    """Write `name`.safetensors and `name`.json, each complete or absent.

    about: must have `architecture`, `options`, `image_shape`, `nz`, `width` and `class_shares`,
    from which `load` builds the network. Other keys inform the user.
    """
    tensors = {key: value.detach().contiguous().cpu() for key, value in G.state_dict().items()}
    description = (json.dumps(about, indent=1) + "\n").encode()
    for path, content in (
        (directory / f"{name}.json", description),
        (directory / f"{name}.safetensors", save(tensors)),
    ):
        with explain_write_errors(path):
            write_complete(path, content)


def find_generator(path: Path) -> Path:
    """Return the best generator of a run directory, or the final one; a file is returned as it is.

    Raises UserError if the directory has no generator.
    """
    if not os.path.isdir(path):
        return path
    for name in (BEST, FINAL):
        if os.path.exists(path / f"{name}.safetensors"):
            return path / f"{name}.safetensors"
    raise UserError(f"{path} has no {FINAL}.safetensors; has the run written its generator yet?")


def load(
    path: str | Path,
    networks: str | Callable[..., Any] | None = None,
    *,
    standing_batches: int = 0,
) -> TrainedGenerator:
    """Load the generator of a run directory, or of a .safetensors file.

    Loads a run's best generator if scores chose one.

    networks: Build function or import string of networks that are neither built in nor installed.
        The caller must name these, because a file must not choose the code that runs.
    standing_batches: Batches of `with_standing_statistics`; 0 keeps the statistics of training.

    Raises UserError if the generator is missing or damaged, or if its networks must be named.
    """
    path = find_generator(Path(path))
    if networks is not None and not isinstance(networks, str):
        networks = plugins.register(_KEY, networks)
    plugins.allow([networks] if networks else [])
    about = read_about(path.with_suffix(".json"))
    architecture = networks or about["architecture"]
    try:
        if plugins.find(_KEY, architecture).origin == "built in":
            check_stored_shapes(path, lambda: _build(about, architecture))
        network = _build(about, architecture)
        network.load_state_dict(load_file(path))
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}"
        ) from None
    except (SafetensorError, ValueError, LookupError, AttributeError, TypeError, RuntimeError):
        raise UserError(f"{path} is not a generator of this program, or is damaged") from None
    generator = TrainedGenerator(network=network.eval(), about=about)
    if standing_batches:
        return generator.with_standing_statistics(standing_batches)
    return generator


def _build(about: dict[str, Any], architecture: str) -> nn.Module:
    channels, height, width = shape_of(about)
    options = about.get("options", {})
    if plugins.find(_KEY, architecture).origin == "built in":
        options = {"width": about["width"]}
    classes = len(about.get("class_shares") or ())
    G, _ = build_from(architecture, (channels, height, width), about["nz"], classes, **options)
    return G
