"""Options of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fedgan_mpi.config.require import require

Metric = Literal["frechet", "classes", "kid", "prdc"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scores."""

    every: int = 100
    """Rounds between scores. 0: only before the first and after the last round."""
    samples: int | None = None
    """Generated images per score. None: the number of held-out images, at most 10,000."""
    metrics: tuple[Metric, ...] = ("frechet", "classes")
    """Scores. frechet: Fréchet distance between feature distributions. classes: number of classes
    generated and their total variation to the data; needs the features of a classifier. kid: kernel
    distance. prdc: precision, recall, density, coverage. kid and prdc send features of real images
    to all ranks, one row for each of evaluation.samples."""
    inception_weights: str | None = None
    """File weights-inception-2015-12-05-6726825d.pth. With it, fid_inception is computed, too. It
    takes minutes per thousand images on a CPU core. None: no fid_inception."""
    patience: int | None = None
    """End training after this number of scores without a lower Fréchet distance. None: train for
    all rounds."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", self.every, "at least 0")
        check_metrics("evaluation.metrics", self.metrics)
        least = least_samples(self.metrics)
        valid = self.samples is None or self.samples >= least
        require(valid, "evaluation.samples", self.samples, f"at least {least}")
        valid = self.patience is None or self.patience >= 1
        require(valid, "evaluation.patience", self.patience, "at least 1")
        valid = self.patience is None or self.every > 0
        right = "above 0 when evaluation.patience is given"
        require(valid, "evaluation.every", self.every, right)


def least_samples(metrics: tuple[str, ...]) -> int:
    """Return the minimum number of images per score."""
    return 6 if "prdc" in metrics else 2  # prdc: an image and its five nearest neighbours


def check_metrics(key: str, metrics: tuple[str, ...]) -> None:
    """Raise UserError for repeated metrics, or if `frechet`, which ranks generators, is not first.

    key: name of the option, for the message.
    """
    right = "a list of different metrics that begins with 'frechet'"
    valid = metrics[:1] == ("frechet",) and len(set(metrics)) == len(metrics)
    require(valid, key, list(metrics), right)
