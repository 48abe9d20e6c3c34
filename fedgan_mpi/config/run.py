"""What a run is called and learns from, and what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedgan_mpi.config.require import require

Metric = Literal["frechet", "classes", "kid", "prdc"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Name, place and seed."""

    name: str | None = None
    """Name of the run's directory. None: made from data set, algorithm and schedule, with a number
    when taken."""
    directory: str = "runs"
    """Where run directories are made; on a cluster, a file system that every rank sees."""
    seed: int = 0
    """Seed of every random stream: parameters, batches, noise, participation, scores."""

    def __post_init__(self) -> None:
        fits = self.name is None or (self.name not in {"", ".", ".."} and "/" not in self.name)
        require(fits, "run.name", self.name, "a plain directory name")
        require(self.directory != "", "run.directory", self.directory, "a path")
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "from 0 to 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned from."""

    shards: str | None = None
    """Directory of device_0001.h5 … and shards.json, as data_prep writes it. None: the embedded
    digits."""
    heldout: str | None = None
    """HDF5 file of real images that no device trains on, for the scores' floor. None: heldout.h5
    beside the shards."""
    devices: int = 8
    """Shards that the embedded digits are cut into; with data.shards their number counts."""
    read: Literal["auto", "memory", "file"] = "auto"
    """Keep a rank's shards in memory, or read each batch from the file. auto: memory where a
    quarter of it suffices."""

    def __post_init__(self) -> None:
        require(1 <= self.devices <= 100, "data.devices", self.devices, "from 1 to 100")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Scores."""

    every: int = 100
    """Rounds between scores; 0: only before the first and after the last round."""
    samples: int | None = None
    """Generated images per score. None: as many as are held out, at most 10,000."""
    metrics: tuple[Metric, ...] = ("frechet", "classes")
    """frechet: distance of feature statistics. classes: covered, and total variation to the data's;
    where the features are a classifier's. kid: kernel distance. prdc: precision, recall, density,
    coverage. For the last two, the features of `samples` real images go to all ranks."""
    inception_weights: str | None = None
    """File weights-inception-2015-12-05-6726825d.pth; with it, frechet is told as fid_inception,
    too. Minutes for a thousand images on a CPU core."""
    patience: int | None = None
    """Scores in a row without a better Fréchet distance, after which training ends. None: it goes
    on to the last round."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", self.every, "at least 0")
        check_metrics("evaluation.metrics", self.metrics)
        least = least_samples(self.metrics)
        fits = self.samples is None or self.samples >= least
        require(fits, "evaluation.samples", self.samples, f"at least {least}")
        fits = self.patience is None or self.patience >= 1
        require(fits, "evaluation.patience", self.patience, "at least 1")
        fits = self.patience is None or self.every > 0
        right = "above 0 when evaluation.patience is given"
        require(fits, "evaluation.every", self.every, right)


def least_samples(metrics: tuple[str, ...]) -> int:
    """Images that a score needs."""
    return 6 if "prdc" in metrics else 2  # five neighbours and oneself


def check_metrics(key: str, metrics: tuple[str, ...]) -> None:
    """Raises UserError where `frechet`, by which generators are ranked, is missing."""
    right = "a list of different metrics that begins with 'frechet'"
    fits = metrics[:1] == ("frechet",) and len(set(metrics)) == len(metrics)
    require(fits, key, list(metrics), right)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What survives the job."""

    every: int = 100
    """Rounds between checkpoints; 0: only after the last round."""
    keep_last: int = 2
    """Checkpoints kept; older ones are deleted."""
    keep_best: bool = False
    """Keep that of the best score, too; every scored round then has a checkpoint."""
    minutes: float | None = None
    """Minutes, too, after which the next round ends with a checkpoint. None: rounds alone count."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "at least 0")
        fits = self.minutes is None or 0 < self.minutes < math.inf
        require(fits, "checkpoint.minutes", self.minutes, "above 0 and finite")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is shown beside stats.jsonl."""

    tensorboard: bool = False
    """Write losses, scores, seconds and grids for TensorBoard, too, into the run directory."""
    grid_every: int = 0
    """Rounds between grids of samples, beside those that go with the scores; 0: those alone."""

    def __post_init__(self) -> None:
        require(self.grid_every >= 0, "record.grid_every", self.grid_every, "at least 0")
