"""The trained generator as a file of its own: parameters in safetensors, what is needed to build it
in JSON. No MPI."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_whole, write_complete
from fedgan_mpi.nn.registry import build_generator
from fedgan_mpi.nn.steps import Batch
from fedgan_mpi.random_streams import Purpose, torch_stream

FINAL = "generator"
BEST = "generator_best"


@dataclass(kw_only=True)
class TrainedGenerator:
    """A generator for use: call it with a number of images."""

    network: nn.Module
    about: dict[str, Any]

    @torch.no_grad()
    def __call__(self, count: int, *, seed: int = 0, label: int | None = None) -> NDArray[np.uint8]:
        """uint8 (count, C, H, W); the same for the same seed.

        label: the class of all images; None: drawn as often as the data have each. Raises UserError
        where there is no such class.
        """
        stream = torch_stream(seed, Purpose.GRID)
        noise = torch.randn(count, self.about["nz"], generator=stream).split(256)
        classes = self._classes(count, stream, label)
        batches = [Batch(z, y) for z, y in zip(noise, classes, strict=True)]
        return np.concatenate([to_pixels(batch.through(self.network)) for batch in batches])

    @property
    def class_names(self) -> list[str]:
        """Of the classes that it was trained to draw. Raises UserError where it knows none."""
        if self.about.get("class_shares") is None:
            raise UserError("this generator knows no classes; train with --model.conditional true")
        names: list[str] = self.about["class_names"]
        return names

    @torch.no_grad()
    def interpolations(self, rows: int, columns: int, *, seed: int = 0) -> NDArray[np.uint8]:
        """uint8 (rows · columns, C, H, W): rows that go from one noise to another, of one class,
        on the great circle between them, where noise is as likely as anywhere."""
        stream = torch_stream(seed, Purpose.GRID)
        ends = torch.randn(2, rows, self.about["nz"], generator=stream)
        drawn = [y for y in self._classes(rows, stream, None) if y is not None]
        classes = torch.cat(drawn) if drawn else None
        pictures = []
        for row in range(rows):
            a, b = ends[:, row]
            angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
            t = torch.linspace(0, 1, columns)[:, None]
            z = ((1 - t) * angle).sin() * a + (t * angle).sin() * b
            y = classes[row].expand(columns, -1) if classes is not None else None
            pictures.append(to_pixels(Batch(z / angle.sin(), y).through(self.network)))
        return np.concatenate(pictures)

    def _classes(
        self, count: int, stream: torch.Generator, label: int | None
    ) -> list[torch.Tensor | None]:
        """One-hot classes for every 256 images; None where the generator is unconditional."""
        shares = self.about.get("class_shares")
        most = len(shares or ()) - 1
        if label is not None and not 0 <= label <= most:
            right = f"from 0 to {most}" if shares else "left out: this generator knows no classes"
            raise UserError(f"label is {label}, but must be {right}")
        if shares is None:
            return [None] * -(-count // 256)
        weights = torch.tensor(shares, dtype=torch.float64)
        drawn = weights.multinomial(count, replacement=True, generator=stream)
        labels = drawn if label is None else torch.full_like(drawn, label)
        return list(nn.functional.one_hot(labels, len(shares)).float().split(256))


def to_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] as uint8, rounded to the nearest."""
    pixels: NDArray[np.uint8] = (
        images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    )
    return pixels


def write_generator(directory: Path, name: str, G: nn.Module, about: dict[str, Any]) -> None:
    """Write `name`.safetensors and `name`.json, each complete or not at all.

    about: `architecture`, `size`, `channels`, `nz`, `width` and `class_shares` build the network;
    the rest is for the reader.
    """
    tensors = {key: value.detach().contiguous().cpu() for key, value in G.state_dict().items()}
    write_complete(directory / f"{name}.json", (json.dumps(about, indent=1) + "\n").encode())
    write_complete(directory / f"{name}.safetensors", save(tensors))


def find_generator(path: Path) -> Path:
    """The .safetensors file that a run directory stands for, or the file itself. Raises UserError
    where there is none."""
    if not path.is_dir():
        return path
    for name in (BEST, FINAL):
        if (path / f"{name}.safetensors").exists():
            return path / f"{name}.safetensors"
    raise UserError(f"{path} has no {FINAL}.safetensors; has the run written its generator yet?")


def load(path: str | Path) -> TrainedGenerator:
    """The generator of a run directory (the best, where scores chose one), or of a .safetensors
    file.

    Raises UserError where there is none.
    """
    path = find_generator(Path(path))
    try:
        about = json.loads(read_whole(path.with_suffix(".json")))
        keys = ("architecture", "size", "channels", "nz", "width")
        classes = len(about.get("class_shares") or ())
        network = build_generator(**{key: about[key] for key in keys}, classes=classes)
        network.load_state_dict(load_file(path))
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}"
        ) from None
    except (SafetensorError, ValueError, LookupError, AttributeError, TypeError, RuntimeError):
        raise UserError(f"{path} is not a generator of this program, or is damaged") from None
    return TrainedGenerator(network=network.eval(), about=about)
