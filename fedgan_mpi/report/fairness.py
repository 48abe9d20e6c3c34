"""Fairness of participation: rounds per device, and class balance of the images seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedgan_mpi.report.device_data import DeviceData

_BALANCED = 0.01
"""Class balance "matches the data" below this total variation."""


@dataclass(frozen=True, kw_only=True)
class Fairness:
    """Participation and class balance of a run so far."""

    rounds: int
    """Rounds of the run so far."""
    participations: list[int]
    """Number of rounds with device 1, 2, …"""
    jain: float
    """Jain's fairness index of `participations`: 1 if all are equal, 1/K if only one is not 0."""
    classes_seen: list[float]
    """Share of each class in the images drawn, assuming that every batch is distributed as its
    shard. Empty without labels."""
    classes_held: list[float]
    """Share of each class in the data of all devices together."""

    @property
    def total_variation(self) -> float | None:
        """Total variation between classes seen and held, 0 to 1; None without labels."""
        if not self.classes_seen:
            return None
        differences = np.array(self.classes_seen) - np.array(self.classes_held)
        return float(np.abs(differences).sum() / 2)

    def summary(self) -> str:
        """Return one or two sentences for the end of a run."""
        fewest, most = min(self.participations), max(self.participations)
        if fewest == self.rounds:
            text = f"every device took part in all {self.rounds} rounds"
        elif fewest == most:
            text = f"every device took part in {fewest} of {self.rounds} rounds"
        else:
            text = f"devices took part in {fewest} to {most} of {self.rounds} rounds"
        text = f"Participation: {text} (Jain index {self.jain:.2f})."
        variation = self.total_variation
        if variation is None:
            return text
        verb = "matches" if variation < _BALANCED else "differs from"
        balance = f"Class balance seen in training {verb} the data"
        return f"{text} {balance} (total variation {variation:.4f})."


def compute_fairness(
    rounds: Sequence[dict[str, Any]], data: DeviceData, batch_size: int
) -> Fairness:
    """Compute the fairness of a run from its rounds in stats.jsonl.

    A skipped participant counts as absent.
    """
    devices = len(data.images)
    present = [set(line["participants"]) - set(line.get("skipped", ())) for line in rounds]
    participations = [sum(k in round for round in present) for k in range(1, devices + 1)]
    squares = devices * sum(n * n for n in participations)
    seen, held = np.zeros(0), np.zeros(0)
    if data.class_names:
        table = np.array(data.histograms, float)
        drawn = np.array(participations) * np.minimum(batch_size, data.images)
        seen, held = (drawn / np.array(data.images)) @ table, table.sum(0)
    return Fairness(
        rounds=len(rounds),
        participations=participations,
        jain=sum(participations) ** 2 / squares if squares else 1.0,
        classes_seen=(seen / seen.sum()).tolist() if seen.any() else [],
        classes_held=(held / held.sum()).tolist() if held.any() else [],
    )
