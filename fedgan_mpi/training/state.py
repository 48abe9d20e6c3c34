"""The training state that a resumed run needs besides networks, optimizers and random streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class TrainState:
    """Counters and scores, the same on every rank after each round."""

    images_seen: int = 0
    """Real images that all devices have drawn."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """The latest scores, as in stats.jsonl."""
    best: dict[str, Any] | None = None
    """`round` and `value` of the lowest Fréchet distance."""
    scores_since_best: int = 0
    ended_early: bool = False
    """Whether `evaluation.patience` is exhausted."""
    update_norms: list[float] | None = None
    """Norm of each device's last update, if the participation policy depends on it."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object for `from_json`."""
        table = asdict(self)
        if self.update_norms is None:
            del table["update_norms"]
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, Any], devices: int) -> TrainState:
        """Raises ValueError unless `table` is a result of `to_json` for this number of devices."""
        best: dict[str, Any] = {"round": int, "value": (int, float)}
        score: dict[str, Any] = {**best, "metric": str, "floor": (int, float), "samples": int}
        kinds: dict[str, Any] = {"images_seen": int, "scores": list, "scores_since_best": int}
        norms = table.get("update_norms", [0.0] * devices)
        valid = (
            _has_types(table, best=(dict, type(None)), ended_early=bool, **kinds)
            and isinstance(norms, list)
            and len(norms) == devices
            and all(isinstance(norm, float) and 0 <= norm < math.inf for norm in norms)
            and all(_has_types(one, **score) for one in table["scores"])
            and (table["best"] is None or _has_types(table["best"], **best))
        )
        if not valid:
            raise ValueError
        return cls(**{name: table[name] for name in cls.__dataclass_fields__ if name in table})


def _has_types(table: Any, **kinds: type | tuple[type, ...]) -> bool:
    return (
        isinstance(table, dict)
        and table.keys() >= kinds.keys()
        and all(isinstance(table[key], kind) for key, kind in kinds.items())
    )
