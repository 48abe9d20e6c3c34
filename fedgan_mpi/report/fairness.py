"""Who took part how often, and which classes were seen thereby."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_whole
from fedgan_mpi.run.directory import DEVICES


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What the devices of a run hold."""

    image_shape: tuple[int, int, int]
    class_names: list[str]
    """Empty where the images have no labels."""
    images: list[int]
    """Of device 1, 2, …"""
    histograms: list[list[int]]
    """Images of each class, a list a device."""


def read_devices(run: Path) -> Devices | None:
    """devices.json of a run; None for runs of versions that wrote none. Raises UserError where it
    is damaged."""
    path = run / DEVICES
    if not path.exists():
        return None
    try:
        table = json.loads(read_whole(path))
        devices = Devices(**{**table, "image_shape": tuple(table["image_shape"])})
        classes = len(devices.class_names)
        lists = [devices.images, *devices.histograms]
        whole = all(isinstance(n, int) and n >= 0 for each in lists for n in each)
        wide = all(len(each) == classes for each in devices.histograms)
        if not whole or not wide or len(devices.histograms) != len(devices.images):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path} is damaged; leave the run out") from None
    return devices


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """Of one run, so far."""

    times: list[int]
    """Rounds that device 1, 2, … took part in."""
    jain: float
    """Jain's index of `times`: 1 where all are equal, 1/K where one device did everything."""
    classes_seen: list[float]
    """Share of each class in the images drawn, were every batch as its shard is; empty without
    labels."""
    classes_held: list[float]
    """Share of each class in all devices' data together."""

    @property
    def total_variation(self) -> float | None:
        """Between classes seen and held, 0 to 1; None without labels."""
        if not self.classes_seen:
            return None
        differences = np.array(self.classes_seen) - np.array(self.classes_held)
        return float(np.abs(differences).sum() / 2)

    def sentence(self) -> str:
        """For the end of a run."""
        often = f"took part in {min(self.times)} to {max(self.times)} rounds"
        line = f"devices {often}, fairness {self.jain:.3g} (Jain)"
        if self.total_variation is None:
            return line
        return f"{line}; classes seen differ from those held by {self.total_variation:.3g}"


def fairness(rounds: Sequence[dict[str, Any]], devices: Devices, batch_size: int) -> Fairness:
    """From a run's lines of stats.jsonl; who was skipped took no part."""
    count = len(devices.images)
    present = [set(line["participants"]) - set(line.get("skipped", ())) for line in rounds]
    times = [sum(k in there for there in present) for k in range(1, count + 1)]
    squares = count * sum(n * n for n in times)
    seen, held = np.zeros(0), np.zeros(0)
    if devices.class_names:
        table = np.array(devices.histograms, float)
        drawn = np.array(times) * np.minimum(batch_size, devices.images) / np.array(devices.images)
        seen, held = drawn @ table, table.sum(0)
    return Fairness(
        times=times,
        jain=sum(times) ** 2 / squares if squares else 1.0,
        classes_seen=(seen / seen.sum()).tolist() if seen.any() else [],
        classes_held=(held / held.sum()).tolist() if held.any() else [],
    )
