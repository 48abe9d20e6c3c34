"""What a resumed run must remember beside networks, optimizers and random streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class TrainState:
    """The same on every rank after each round."""

    images_seen: int = 0
    """Real images that all devices have drawn."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """The last ones, as stats.jsonl has them."""
    best: dict[str, Any] | None = None
    """`round` and `value` of the best Fréchet distance."""
    scores_since_best: int = 0
    ended_early: bool = False
    """Whether patience came to its end."""
    update_norms: list[float] | None = None
    """How far each device last went, where devices are drawn by it."""

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        table = asdict(self)
        if self.update_norms is None:
            del table["update_norms"]
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, Any], devices: int) -> TrainState:
        """Raises ValueError where it is not what `to_json` gave for so many devices."""
        best: dict[str, Any] = {"round": int, "value": (int, float)}
        score: dict[str, Any] = {**best, "metric": str, "floor": (int, float), "samples": int}
        kinds: dict[str, Any] = {"images_seen": int, "scores": list, "scores_since_best": int}
        norms = table.get("update_norms", [0.0] * devices)
        fits = (
            _fits(table, best=(dict, type(None)), ended_early=bool, **kinds)
            and isinstance(norms, list)
            and len(norms) == devices
            and all(isinstance(norm, float) and 0 <= norm < math.inf for norm in norms)
            and all(_fits(one, **score) for one in table["scores"])
            and (table["best"] is None or _fits(table["best"], **best))
        )
        if not fits:
            raise ValueError
        return cls(**{name: table[name] for name in cls.__dataclass_fields__ if name in table})


def _fits(table: Any, **kinds: type | tuple[type, ...]) -> bool:
    return (
        isinstance(table, dict)
        and table.keys() >= kinds.keys()
        and all(isinstance(table[key], kind) for key, kind in kinds.items())
    )
