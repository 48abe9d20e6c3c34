"""The extractors of a run's scores: the shards' own, the user's, and Inception."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgan_mpi import plugins
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import EvaluationConfig
from fedgan_mpi.config.options import check_options
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import Extractor, read_extractor

_KEY = "evaluation.extractor"


class OwnExtractor(Extractor):
    """A module from outside of the program: maps uint8 images (B, C, H, W) to features (B, d)."""

    def __init__(
        self, network: nn.Module, image_shape: tuple[int, int, int], kind: str, sha256: str
    ) -> None:
        """kind, sha256: parts of the names of its metrics."""
        super().__init__()
        self.network, self.image_shape = network, image_shape
        self.kind, self.sha256 = kind, sha256
        self.width = self.features(torch.zeros(2, *image_shape, dtype=torch.uint8)).shape[1]

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


def read_extractors(
    link: Link, config: EvaluationConfig, image_shape: tuple[int, int, int], shards: Path | None
) -> list[Extractor]:
    """Return the configured extractors; empty if there is none. Collective.

    shards: file of the extractor beside the shards. Raises AgreedError if a file is missing or
    wrong, or if a module from outside of the program is no extractor.
    """

    def read() -> list[Extractor]:
        extractors: list[Extractor] = []
        if config.extractor != "shards":
            extractors.append(make_extractor(config, image_shape))
        elif shards is not None:
            extractors.append(read_extractor(shards))
        if config.inception_weights is not None:
            from fedgan_mpi.evaluation.inception import read_inception

            extractors.append(read_inception(Path(config.inception_weights)))
        return extractors

    return link.on_every_rank(read)


def check_extractor_options(config: EvaluationConfig) -> dict[str, Any]:
    """Return the options as the extractor takes them. Raises UserError for wrong ones."""
    return check_options(_KEY, config.extractor, config.extractor_options, given=("image_shape",))


@torch.no_grad()
def make_extractor(config: EvaluationConfig, image_shape: tuple[int, int, int]) -> Extractor:
    """Make and try an extractor from outside of the program.

    Its initial parameters are the same on every rank: torch's global stream is seeded for it, and
    restored. Raises UserError naming it if it raises, or does not return one row of numbers for
    each image, the same when asked again.
    """
    make, options = plugins.load(_KEY, config.extractor), check_extractor_options(config)
    images = torch.arange(2 * image_shape[0] * image_shape[1] * image_shape[2]).remainder(256)
    images = images.to(torch.uint8).view(2, *image_shape)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = make(image_shape, **options)
            if not isinstance(network, nn.Module):
                what = type(network).__name__
                raise _refusal(config, f"returned a {what}, but must return a module")
            network.eval()
            features, again = network(images), network(images)
    except UserError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _refusal(config, f"raised {problem}") from error
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[0] != 2 or shape[1] < 1:
        raise _refusal(
            config, f"gives the shape {shape} for two images, but must give (2, features)"
        )
    if not features.is_floating_point() or not features.isfinite().all():
        raise _refusal(config, "gives features that are not finite floating-point numbers")
    if not torch.equal(features, again):
        raise _refusal(config, "gives other features when it is asked again for the same images")
    name = getattr(make, "__name__", "own")
    return OwnExtractor(network, image_shape, name, _hash(make, options, network)).eval()


def _hash(make: Any, options: dict[str, Any], network: nn.Module) -> str:
    """Return a hash of source, options and parameters: scores of others are not comparable."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    try:
        digest.update(inspect.getsource(inspect.getmodule(make) or make).encode())
    except (OSError, TypeError):  # defined in a console
        digest.update(repr(make).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _refusal(config: EvaluationConfig, problem: str) -> UserError:
    return UserError(f"{_KEY} is {config.extractor!r}, but it {problem}")
