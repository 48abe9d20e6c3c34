"""Options of scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fedgan_mpi import plugins
from fedgan_mpi.config.options import check_listed, check_named
from fedgan_mpi.config.paths import set_expanded
from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scores."""

    every: int = 100
    """Rounds between scores. 0: only before the first and after the last round."""
    samples: int | None = None
    """Generated images per score. None: the number of held-out images, at most 10,000."""
    extractor: str = "shards"
    """Feature extractor of the scores, also an installed one or an import string. shards: the one
    that data_prep wrote beside the shards. imagenet: EfficientNet-Lite0. FILE.pt, FILE.pt2,
    FILE.onnx: a network of TorchScript, torch.export or ONNX, from uint8 images to features."""
    imagenet_size: int = 224
    """imagenet: pixels per side to which images are resized, a multiple of 32. A smaller size is
    faster. It is another metric."""
    extractor_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of an extractor that is not built in: keywords of the function that makes it."""
    metrics: tuple[str, ...] = ("frechet", "classes")
    """Scores, also installed ones or import strings. frechet: Fréchet distance between feature
    distributions. classes: number of classes generated and their total variation to the data; needs
    the features of a classifier. per_class: Fréchet distance of each class. kid: kernel distance.
    kid_federated: its mean over devices. prdc: precision, recall, density, coverage. kid and prdc
    send features of single real images to all ranks, one row for each of evaluation.samples.
    kid_federated sends one number for each device. The others send sums, which are the features of
    the image if a device has only one."""
    metric_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Own options of metrics that are not built in: a table for each, by its name in
    evaluation.metrics, of keywords of its constructor."""
    inception_weights: str | None = None
    """File weights-inception-2015-12-05-6726825d.pth. With it, fid_inception is computed, too. It
    takes minutes per thousand images on a CPU core. None: no fid_inception."""
    collapse_share: float = 0.05
    """Threshold for a collapse of the generator. The spread of features is the trace of their
    covariance. The generator has collapsed if the spread of its images is below this share of the
    real images' spread, and has not grown since the last score of a trained generator. 0: never."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """Response to a collapse. warn: a warning, and a line in stats.jsonl. stop: also end the
    training."""
    patience: int | None = None
    """End training after this number of scores without a lower Fréchet distance. None: train for
    all rounds."""

    def __post_init__(self) -> None:
        set_expanded(self, "inception_weights")
        require(self.every >= 0, "evaluation.every", self.every, "at least 0")
        check_named("evaluation.extractor", self.extractor, self.extractor_options)
        size = self.imagenet_size
        valid = 32 <= size <= 1024 and size % 32 == 0
        require(valid, "evaluation.imagenet_size", size, "a multiple of 32 from 32 to 1024")
        valid = size == 224 or self.extractor == "imagenet"
        right = "left out unless evaluation.extractor is 'imagenet'"
        require(valid, "evaluation.imagenet_size", size, right)
        check_metrics("evaluation.metrics", self.metrics)
        check_listed("evaluation.metrics", self.metrics, self.metric_options)
        least = least_samples(self.metrics)
        valid = self.samples is None or self.samples >= least
        require(valid, "evaluation.samples", self.samples, f"at least {least}")
        share = self.collapse_share
        require(0 <= share < 1, "evaluation.collapse_share", share, "from 0 to below 1")
        valid = self.patience is None or self.patience >= 1
        require(valid, "evaluation.patience", self.patience, "at least 1")
        valid = self.patience is None or self.every > 0
        right = "above 0 when evaluation.patience is given"
        require(valid, "evaluation.every", self.every, right)


def least_samples(metrics: tuple[str, ...]) -> int:
    """Return the minimum number of images per score."""
    return 6 if "prdc" in metrics else 2  # prdc: an image and its five nearest neighbours


def check_metrics(key: str, metrics: tuple[str, ...]) -> None:
    """Raise UserError for unknown or repeated metrics, or if `frechet`, which ranks generators, is
    not first.

    key: name of the option, for the message.
    """
    right = "a list of different metrics that begins with 'frechet'"
    valid = metrics[:1] == ("frechet",) and len(set(metrics)) == len(metrics)
    require(valid, key, list(metrics), right)
    for name in metrics:
        plugins.find("evaluation.metrics", name)
