"""Reads a run directory: its configuration, rounds and scores. Knows neither pages nor plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.config import Config
from fedgan_mpi.config.io import config_table, read_config, read_provenance
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.device_data import DeviceData, read_device_data
from fedgan_mpi.report.fairness import Fairness, compute_fairness
from fedgan_mpi.run.image_grids import grids_of
from fedgan_mpi.run.stats import SECONDS_OF_DEVICE, STATS, read_stats
from fedgan_mpi.schema import SchemaError


@dataclass(kw_only=True)
class History:
    """One run, as its directory records it."""

    path: Path
    experiment: Config
    config: dict[str, dict[str, Any]]
    """`experiment` as TOML tables."""
    shards_sha256: str
    rounds: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    """Scores of all metrics, in the order of rounds."""
    device_data: DeviceData | None
    """None if the run directory has no devices.json."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def metric(self) -> str | None:
        """Name of the run's Fréchet distance, its first metric; None without scores."""
        return self.scores[0]["metric"] if self.scores else None

    @property
    def values(self) -> NDArray[np.float64]:
        """The Fréchet distances, in the order of rounds."""
        return np.array([line["value"] for line in self._frechet_scores], float)

    @property
    def scored_rounds(self) -> NDArray[np.int64]:
        """Completed rounds at each of `values`."""
        return np.array([line["round"] for line in self._frechet_scores], int)

    @property
    def participants(self) -> int:
        """Number of participants per round, N."""
        return len(self.rounds[0]["participants"]) if self.rounds else 1

    @property
    def fairness(self) -> Fairness | None:
        """None for an algorithm without devices, or without devices.json."""
        if self.device_data is None or not self.experiment.algorithm.traits.has_devices:
            return None
        batch_size = self.experiment.training.batch_size
        return compute_fairness(self.rounds, self.device_data, batch_size)

    @property
    def privacy(self) -> list[tuple[int, float]]:
        """Round and ε of each scored round; empty if the algorithm is not private."""
        spent = {line["round"]: line.get("epsilon") for line in self.scores}
        return [(t, epsilon) for t, epsilon in spent.items() if epsilon is not None]

    @property
    def grids(self) -> list[Path]:
        """Sample grids, in the order of rounds."""
        return grids_of(self.path)

    @property
    def _frechet_scores(self) -> list[dict[str, Any]]:
        return [line for line in self.scores if line["metric"] == self.metric]


def seconds_by_device(line: Mapping[str, Any]) -> dict[int, float]:
    """Return participant -> seconds of its local round. Empty if the round does not record them."""
    return dict(zip(line["participants"], line.get(SECONDS_OF_DEVICE, ()), strict=False))


def read_history(run: Path) -> History:
    """Read a run directory.

    Raises UserError if the directory is no run, or if a file is incomplete, damaged or written by
    an older version.
    """
    experiment = read_config(run / "config.toml")
    sha256 = read_provenance(run).get("shards_sha256")
    if not isinstance(sha256, str):
        raise UserError(f"{run / 'config.toml'} has no string provenance.shards_sha256")
    try:
        rounds, scores = read_stats(run)
        if [line["round"] for line in rounds] != list(range(1, len(rounds) + 1)):
            raise SchemaError("its rounds are not 1, 2, and so on")
        if not all(0 <= line["round"] <= len(rounds) for line in scores):
            raise SchemaError("a score has another round")
    except OSError as error:
        raise UserError(f"{run / STATS} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise UserError(
            f"{run / STATS} is damaged or of an older version; continue the run with "
            f"`train --resume {run}`, or leave it out ({error})"
        ) from None
    return History(
        path=run,
        experiment=experiment,
        config=config_table(experiment),
        shards_sha256=sha256,
        rounds=rounds,
        scores=scores,
        device_data=read_device_data(run),
    )
