"""What a run directory tells of its run: its configuration, and how scores came about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.command_line import PROVENANCE, config_table, read_config, tomllib
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.stats import STATS, read_stats

Array = NDArray[np.float64]

COSTS = {
    "rounds": "rounds",
    "seconds": "measured seconds",
    "megabytes": "megabytes down and up, all devices",
    "wireless": "wireless seconds (settings ours)",
}
"""What a score can have cost, and how an axis names it."""


@dataclass(kw_only=True)
class History:
    """One run."""

    path: Path
    config: dict[str, dict[str, Any]]
    shards_sha256: str
    rounds: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    """Of all metrics, in the order of rounds."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def metric(self) -> str | None:
        """The Fréchet distance that the run was scored by; None where it has no scores."""
        return self.scores[0]["metric"] if self.scores else None

    @property
    def values(self) -> Array:
        """The Fréchet distance at every score."""
        return np.array([line["value"] for line in self._frechet], float)

    def cost(self, of: str) -> Array | None:
        """What had been spent at every score; None where the run does not tell."""
        done = np.array([line["round"] for line in self._frechet], int)
        if of == "rounds":
            return done.astype(float)
        keys = {"seconds": ["seconds"], "wireless": ["wireless_seconds"]}
        keys["megabytes"] = ["bytes_down", "bytes_up"]
        if not all(key in line for line in self.rounds for key in keys[of]):
            return None
        each = [sum(line[key] for key in keys[of]) for line in self.rounds]
        total = np.cumsum([0.0, *each])[done]
        return total / 1e6 if of == "megabytes" else total

    def cost_to(self, target: float, of: str) -> float | None:
        """What had been spent when the score first was at the target or below; None if never."""
        reached = np.flatnonzero(self.values <= target)
        spent = self.cost(of)
        return None if spent is None or not len(reached) else float(spent[reached[0]])

    @property
    def grids(self) -> list[Path]:
        return sorted((self.path / "samples").glob("round_*.png"))

    @property
    def _frechet(self) -> list[dict[str, Any]]:
        return [line for line in self.scores if line["metric"] == self.metric]


def read_history(run: Path) -> History:
    """Raises UserError where the directory is none of a run, or is half-written or of an older
    version."""
    config = config_table(read_config(run / "config.toml"))
    try:
        with open(run / "config.toml", "rb") as file:
            sha256 = tomllib.load(file)[PROVENANCE]["shards_sha256"]
    except KeyError:
        raise UserError(f"{run / 'config.toml'} does not say which shards the run had") from None
    try:
        rounds, scores = read_stats(run)
        for number, line in enumerate(rounds, start=1):
            if line["round"] != number:
                raise ValueError
        for line in scores:
            if not 0 <= line["round"] <= len(rounds):
                raise ValueError
    except OSError as error:
        raise UserError(f"{run / STATS} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(
            f"{run / STATS} is damaged or of an older version; go on with `train --resume {run}`, "
            "or leave the run out"
        ) from None
    return History(path=run, config=config, shards_sha256=sha256, rounds=rounds, scores=scores)


@dataclass(kw_only=True)
class Group:
    """Runs of one configuration that differ by their seeds."""

    label: str
    runs: list[History]


def group_runs(runs: Sequence[History]) -> list[Group]:
    """Runs by equal configuration, labelled by the algorithm and by what else tells them apart.

    Raises UserError where two runs have the same seed, too: they would pass for a spread.
    """
    by_settings: dict[str, list[History]] = {}
    for run in runs:
        by_settings.setdefault(json.dumps(_settings(run)), []).append(run)
    groups = list(by_settings.values())
    for same in groups:
        by_seed: dict[int, History] = {}
        for run in same:
            twin = by_seed.setdefault(run.config["run"]["seed"], run)
            if twin is not run:
                raise UserError(
                    f"{run.path} and {twin.path} have the same configuration and seed; "
                    "leave one out"
                )
    labels = [_method(same[0]) for same in groups]
    return [
        Group(label=" ".join([label, *_differences(label, same[0], labels, groups)]), runs=same)
        for label, same in zip(labels, groups, strict=True)
    ]


def _method(run: History) -> str:
    algorithm = run.config["algorithm"]
    words = [algorithm["name"]]
    words += [algorithm["schedule"]] if words == ["ren"] else []
    words += [algorithm[key] for key in ("preset",) if key in algorithm]
    return " ".join(words)


def _differences(
    label: str, run: History, labels: Sequence[str], groups: Sequence[Sequence[History]]
) -> list[str]:
    """What tells a run from those of other configurations with the same label."""
    namesakes = [
        _settings(same[0]) for other, same in zip(labels, groups, strict=True) if other == label
    ]
    return [
        f"{key.partition('.')[2]} {value}"
        for key, value in _settings(run).items()
        if len({json.dumps(settings.get(key)) for settings in namesakes}) > 1
    ]


def _settings(run: History) -> dict[str, Any]:
    """All that makes a run the experiment it is; not its name, seed, place and records."""
    return {
        f"{section}.{key}": value
        for section, table in run.config.items()
        if section not in ("run", "checkpoint", "record")
        for key, value in table.items()
        if (section, key) not in (("data", "shards"), ("data", "heldout"), ("data", "read"))
    }


def check_comparable(runs: Sequence[History]) -> None:
    """Raises UserError where scores cannot stand on one axis, saying which run differs."""
    first = runs[0]
    for run in runs:
        if not run.scores:
            raise UserError(f"{run.path} has no scores, so it cannot be compared")
        for what, mine, other in (
            ("images a score", run.scores[0]["samples"], first.scores[0]["samples"]),
            ("metric (with its extractor)", run.metric, first.metric),
            ("shards", run.shards_sha256[:12], first.shards_sha256[:12]),
        ):
            if mine != other:
                raise UserError(
                    f"{run.path} cannot be compared with {first.path}: "
                    f"its {what}: {mine}, there: {other}"
                )
        paths = [other.path.resolve() for other in runs]
        if paths.count(run.path.resolve()) > 1:
            raise UserError(f"{run.path} is named twice")
