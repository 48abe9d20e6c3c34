"""The extractors of a run's scores: the shards' own, ImageNet's, the user's, and Inception."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgan_mpi import plugins
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import EvaluationConfig
from fedgan_mpi.config.options import check_options
from fedgan_mpi.config.paths import user_path
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import Extractor, read_extractor

_KEY = "evaluation.extractor"


class OwnExtractor(Extractor):
    """A module from outside of the program: maps uint8 images (B, C, H, W) to features (B, d).

    It gets uint16 images where the shards have them if it has the attribute `reads_uint16`.
    """

    def __init__(
        self, network: nn.Module, image_shape: tuple[int, int, int], kind: str, sha256: str
    ) -> None:
        """kind, sha256: parts of the names of its metrics."""
        super().__init__()
        self.network, self.image_shape = network, image_shape
        self.kind, self.sha256 = kind, sha256
        self.reads_uint16 = bool(getattr(network, "reads_uint16", False))

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


def read_extractors(
    link: Link,
    config: EvaluationConfig,
    image_shape: tuple[int, int, int],
    shards: Path | None,
    device: str,
) -> list[Extractor]:
    """Return the configured extractors; empty if there is none. Collective.

    shards: file of the extractor beside the shards. device: the rank's torch device. Raises
    AgreedError if a file is missing or wrong, or if a module from outside of the program is no
    extractor.
    """

    def read() -> list[Extractor]:
        extractors: list[Extractor] = []
        if config.extractor == "imagenet":
            from fedgan_mpi.evaluation.imagenet import read_imagenet

            check_channels(f"{_KEY} imagenet", image_shape)
            extractors.append(read_imagenet(config.imagenet_size))
        elif config.extractor != "shards":
            extractors.append(make_extractor(config, image_shape, device))
        elif shards is not None:
            extractors.append(read_extractor(shards))
        if config.inception_weights is not None:
            from fedgan_mpi.evaluation.inception import read_inception

            check_channels("evaluation.inception_weights", image_shape)
            extractors.append(read_inception(Path(config.inception_weights)))
        for extractor in extractors:
            extractor.place(device)
        return extractors

    return link.on_every_rank(read)


def check_channels(key: str, image_shape: tuple[int, int, int]) -> None:
    """Raise UserError unless images are gray or RGB. key: the option that needs it."""
    if image_shape[0] not in (1, 3):
        raise UserError(
            f"{key} needs images of 1 or 3 channels, but these have {image_shape[0]}; use another "
            "extractor"
        )


def check_extractor(config: EvaluationConfig) -> None:
    """Raise UserError if an extractor from outside of the program is missing, or its options are
    wrong."""
    if plugins.is_file(_KEY, config.extractor):
        _read_file(config)
    elif not plugins.is_built_in(_KEY, config.extractor):
        check_extractor_options(config)


def check_extractor_options(config: EvaluationConfig) -> dict[str, Any]:
    """Return the options as the extractor takes them. Raises UserError for wrong ones."""
    return check_options(_KEY, config.extractor, config.extractor_options, given=("image_shape",))


def make_extractor(
    config: EvaluationConfig, image_shape: tuple[int, int, int], device: str = "cpu"
) -> Extractor:
    """Make an extractor from outside of the program, and try it on its device.

    Raises UserError naming it if it raises, or does not return one row of numbers for each image,
    the same when asked again.
    """
    if plugins.is_file(_KEY, config.extractor):
        network, sha256 = _read_file(config)
        kind = re.sub(r"\W+", "_", Path(config.extractor).stem)
    else:
        network, kind, sha256 = _make_network(config, image_shape)
    extractor = OwnExtractor(network, image_shape, kind, sha256)
    with _explained(config):
        extractor.place(device)
        _try(config, extractor)
    return extractor


def _read_file(config: EvaluationConfig) -> tuple[nn.Module, str]:
    """Return the network in the file that the configuration names, and the file's hash."""
    from fedgan_mpi.evaluation.network_file import read_network

    plugins.check_permission(_KEY, config.extractor)
    try:
        network, content = read_network(user_path(config.extractor))
    except UserError as error:
        raise UserError(f"{_KEY} is {config.extractor!r}, but {error}") from None
    return network, hashlib.sha256(content).hexdigest()


def _make_network(
    config: EvaluationConfig, image_shape: tuple[int, int, int]
) -> tuple[nn.Module, str, str]:
    """Return the network of an import string, its name, and a hash.

    Its initial parameters are the same on every rank: torch's global stream is seeded for it, and
    restored.
    """
    make, options = plugins.load(_KEY, config.extractor), check_extractor_options(config)
    with _explained(config), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(image_shape, **options)
    if not isinstance(network, nn.Module):
        what = type(network).__name__
        raise _refusal(config, f"returned a {what}, but must return a module")
    network.eval()
    return network, getattr(make, "__name__", "own"), _hash(make, options, network)


def _try(config: EvaluationConfig, extractor: OwnExtractor) -> None:
    """Set the extractor's width. Raises UserError unless it gives each image a row of numbers."""
    pixels = np.arange(2 * math.prod(extractor.image_shape), dtype=np.int64) % 256
    images = pixels.astype(np.uint8).reshape(2, *extractor.image_shape)
    features, again, one = (extractor.compute(each) for each in (images, images, images[:1]))
    shapes = [tuple(getattr(each, "shape", ())) for each in (features, one)]
    for count, shape in zip((2, 1), shapes, strict=True):
        if len(shape) != 2 or shape[0] != count or shape[1] < 1:
            how_many = "two images" if count == 2 else "one image"
            problem = f"gives the shape {shape} for {how_many}, but must give ({count}, features)"
            raise _refusal(config, problem)
    if not features.is_floating_point() or not features.isfinite().all():
        raise _refusal(config, "gives features that are not finite floating-point numbers")
    if not torch.equal(features, again):
        raise _refusal(config, "gives other features when it is asked again for the same images")
    if extractor.reads_uint16:
        extractor.compute(images.astype(np.uint16) * 257)  # what it raises is explained here
    extractor.width = shapes[0][1]


@contextmanager
def _explained(config: EvaluationConfig) -> Iterator[None]:
    """Raise a UserError that names the extractor instead of any other exception."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _refusal(config, f"raised {problem}") from error


def _hash(make: Any, options: dict[str, Any], network: nn.Module) -> str:
    """Return a hash of source, options and parameters: scores of others are not comparable."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    try:
        digest.update(inspect.getsource(inspect.getmodule(make) or make).encode())
    except (OSError, TypeError):  # defined in a console
        digest.update(repr(make).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _refusal(config: EvaluationConfig, problem: str) -> UserError:
    return UserError(f"{_KEY} is {config.extractor!r}, but it {problem}")
