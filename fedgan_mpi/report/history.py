"""What a run directory tells of its run: its configuration, and how scores came about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.cli.parser import PROVENANCE, config_table, read_config, tomllib
from fedgan_mpi.config import CHANNEL_POLICIES, Config, WirelessConfig
from fedgan_mpi.config.algorithm_traits import TRAITS
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.fairness import Devices, Fairness, fairness, read_devices
from fedgan_mpi.run.stats import STATS, read_stats
from fedgan_mpi.wireless.cell import Cell

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
    experiment: Config
    config: dict[str, dict[str, Any]]
    shards_sha256: str
    rounds: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    """Of all metrics, in the order of rounds."""
    devices: Devices | None
    """None where the run does not say what they hold."""

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
        if any(line.get(key) is None for line in self.rounds for key in keys[of]):
            return None
        each = [sum(line[key] for key in keys[of]) for line in self.rounds]
        total = np.cumsum([0.0, *each])[done]
        return total / 1e6 if of == "megabytes" else total

    def cost_to(self, target: float, of: str) -> float | None:
        """What had been spent when the score first was at the target or below; None if never."""
        reached = np.flatnonzero(self.values <= target)
        spent = self.cost(of)
        return None if spent is None or not len(reached) else float(spent[reached[0]])

    def with_clock(self, wireless: WirelessConfig) -> History:
        """The same run as another cell would have timed it; training does not depend on it.

        Raises UserError where the run does not say what its devices hold, where its participants
        were chosen by channel, or where times were measured.
        """
        path, devices = self.path, self.devices
        if devices is None:
            raise UserError(f"{path} does not say what its devices hold, so it cannot be timed")
        if self.experiment.participation.policy in CHANNEL_POLICIES:
            policy = self.experiment.participation.policy
            raise UserError(f"{path} cannot be timed anew: {policy} chose by its own cell")
        if wireless.compute == "measured":
            raise UserError("wireless.compute is 'measured', but a run is timed anew by 'macs'")
        from fedgan_mpi.wireless.clock import make_clock

        images, classes = devices.images, len(devices.class_names)
        if not self.experiment.algorithm.traits.has_devices:
            images = [sum(images)]
        experiment = replace(self.experiment, wireless=wireless)
        clock = make_clock(
            experiment,
            devices.image_shape,
            images,
            classes if experiment.model.conditional else 0,
        )
        rounds = [
            {**line, "wireless_seconds": clock.seconds(line["round"] - 1, line["participants"])}
            for line in self.rounds
        ]
        return replace(self, experiment=experiment, config=config_table(experiment), rounds=rounds)

    @property
    def fairness(self) -> Fairness | None:
        """None where nobody is chosen, as in one process, or the run does not say what devices
        hold."""
        if self.devices is None or not self.experiment.algorithm.traits.has_devices:
            return None
        return fairness(self.rounds, self.devices, self.experiment.training.batch_size)

    @property
    def participants(self) -> int:
        """Of a round, N."""
        return len(self.rounds[0]["participants"]) if self.rounds else 1

    @property
    def cell(self) -> Cell | None:
        """The simulated cell; None where neither the clock nor the policy hears it."""
        heard = self.experiment.wireless.on
        heard |= self.experiment.participation.policy in CHANNEL_POLICIES
        if self.fairness is None or self.devices is None or not heard:
            return None
        return Cell(self.experiment.wireless, len(self.devices.images))

    @property
    def grids(self) -> list[Path]:
        return sorted((self.path / "samples").glob("round_*.png"))

    @property
    def _frechet(self) -> list[dict[str, Any]]:
        return [line for line in self.scores if line["metric"] == self.metric]


def read_history(run: Path) -> History:
    """Raises UserError where the directory is none of a run, or is half-written or of an older
    version."""
    experiment = read_config(run / "config.toml")
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
    return History(
        path=run,
        experiment=experiment,
        config=config_table(experiment),
        shards_sha256=sha256,
        rounds=rounds,
        scores=scores,
        devices=read_devices(run),
    )


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
    words += [algorithm["schedule"]] if "schedule" in TRAITS[words[0]].keys else []
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
