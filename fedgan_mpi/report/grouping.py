"""Groups runs by configuration, and refuses runs whose scores are not comparable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedgan_mpi.errors import UserError
from fedgan_mpi.report.history import History


@dataclass(kw_only=True)
class Group:
    """Runs of one configuration with different seeds."""

    label: str
    runs: list[History]


def group_runs(runs: Sequence[History]) -> list[Group]:
    """Group runs of equal configuration; the label names the algorithm and distinct settings.

    Raises UserError for two runs of equal configuration and seed, which would count as two seeds.
    """
    by_settings: dict[str, list[History]] = {}
    for run in runs:
        by_settings.setdefault(json.dumps(settings_of(run)), []).append(run)
    groups = list(by_settings.values())
    for group in groups:
        _check_seeds(group)
    names = [_algorithm_name(group[0]) for group in groups]
    labels = []
    for name, group in zip(names, groups, strict=True):
        same_name = [
            other[0] for other_name, other in zip(names, groups, strict=True) if other_name == name
        ]
        labels.append(" ".join([name, *_distinct_settings(group[0], same_name)]))
    return [Group(label=label, runs=group) for label, group in zip(labels, groups, strict=True)]


def check_comparable(runs: Sequence[History]) -> None:
    """Raise UserError unless all runs have scores of one metric, sample count and data set."""
    first = runs[0]
    paths = [run.path.resolve() for run in runs]
    for run in runs:
        if not run.scores:
            raise UserError(f"{run.path} has no scores, so it cannot be compared")
        for name, value, expected in (
            ("images per score", run.scores[0]["samples"], first.scores[0]["samples"]),
            ("metric (with extractor)", run.metric, first.metric),
            ("SHA-256 of shards", run.shards_sha256[:12], first.shards_sha256[:12]),
        ):
            if value != expected:
                raise UserError(
                    f"{run.path} cannot be compared with {first.path}: "
                    f"its {name}: {value}, but must be {expected}"
                )
        if paths.count(run.path.resolve()) > 1:
            raise UserError(f"{run.path} is named twice; name each run once")


def _check_seeds(runs: Sequence[History]) -> None:
    by_seed: dict[int, History] = {}
    for run in runs:
        other = by_seed.setdefault(run.config["run"]["seed"], run)
        if other is not run:
            raise UserError(
                f"{run.path} and {other.path} have the same configuration and seed; leave one out"
            )


def _algorithm_name(run: History) -> str:
    """Return the algorithm with its schedule and preset, if it has them."""
    algorithm = run.config["algorithm"]
    words = [algorithm["name"]]
    if "schedule" in run.experiment.algorithm.traits.keys:
        words.append(algorithm["schedule"])
    if "preset" in algorithm:
        words.append(algorithm["preset"])
    return " ".join(words)


def _distinct_settings(run: History, same_name: Sequence[History]) -> list[str]:
    """Return the settings of a run that differ among runs of the same algorithm."""
    settings = [settings_of(other) for other in same_name]
    return [
        f"{key.partition('.')[2]} {value}"
        for key, value in settings_of(run).items()
        if len({json.dumps(other.get(key)) for other in settings}) > 1
    ]


def settings_of(run: History) -> dict[str, Any]:
    """Return the options that define the experiment, without name, seed, paths and output."""
    return {
        f"{section}.{key}": value
        for section, table in run.config.items()
        if section not in ("run", "checkpoint", "record", "log")
        for key, value in table.items()
        if (section, key) not in (("data", "shards"), ("data", "heldout"), ("data", "read"))
    }
