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
from fedgan_mpi.files import write_complete
from fedgan_mpi.learning.networks import Generator
from fedgan_mpi.streams import Purpose, torch_stream

FINAL = "generator"
BEST = "generator_best"


@dataclass(kw_only=True)
class TrainedGenerator:
    """A generator for use: call it with a number of images."""

    network: Generator
    about: dict[str, Any]

    @torch.no_grad()
    def __call__(self, count: int, *, seed: int = 0) -> NDArray[np.uint8]:
        """uint8 (count, C, H, W); the same for the same seed."""
        stream = torch_stream(seed, Purpose.GRID)
        batches = torch.randn(count, self.network.nz, generator=stream).split(256)
        return np.concatenate([to_pixels(self.network(z)) for z in batches])


def to_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] as uint8, rounded to the nearest."""
    pixels: NDArray[np.uint8] = (
        images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    )
    return pixels


def write_generator(directory: Path, name: str, G: nn.Module, about: dict[str, Any]) -> None:
    """Write `name`.safetensors and `name`.json, each complete or not at all.

    about: `size`, `channels`, `nz` and `width` build the network; the rest is for the reader.
    """
    tensors = {key: value.detach().contiguous().cpu() for key, value in G.state_dict().items()}
    write_complete(directory / f"{name}.json", (json.dumps(about, indent=1) + "\n").encode())
    write_complete(directory / f"{name}.safetensors", save(tensors))


def load(path: str | Path) -> TrainedGenerator:
    """The generator of a run directory (the best, where scores chose one), or of a .safetensors
    file.

    Raises UserError where there is none.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in (BEST, FINAL) if (path / f"{name}.safetensors").exists()]
        if not names:
            raise UserError(
                f"{path} has no {FINAL}.safetensors; has the run written its generator yet?"
            )
        path = path / f"{names[0]}.safetensors"
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        shape = {key: about[key] for key in ("size", "channels", "nz", "width")}
        network = Generator(**shape)
        network.load_state_dict(load_file(path))
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}"
        ) from None
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise UserError(f"{path} is not a generator of this program, or is damaged") from None
    return TrainedGenerator(network=network.eval(), about=about)
