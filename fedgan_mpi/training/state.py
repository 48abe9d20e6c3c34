"""The training state that a resumed run needs besides networks, optimizers and random streams."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fedgan_mpi.schema import Count, SchemaError, check


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
    outlier_counts: list[int] | None = None
    """In how many rounds each device was an outlier, if `aggregation.detector` is on."""
    augment_probability: float | None = None
    """p of adaptive augmentation, if it is on."""
    spread: float | None = None
    """Spread of the features of the generator that was scored last, as a share of the real one."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object for `from_json`."""
        table = asdict(self)
        for optional in ("update_norms", "outlier_counts", "augment_probability", "spread"):
            if table[optional] is None:
                del table[optional]
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, Any], devices: int) -> TrainState:
        """Raises SchemaError unless `table` is a result of `to_json` for this number of devices."""
        progress = check(dict(table), _Progress)
        for name in ("update_norms", "outlier_counts"):
            values = getattr(progress, name)
            if values is not None and len(values) != devices:
                raise SchemaError(
                    f"progress.{name} has {len(values)} entries for {devices} devices"
                )
        return cls(**{name: table[name] for name in cls.__dataclass_fields__ if name in table})


class _Best(msgspec.Struct, forbid_unknown_fields=True):
    round: Count
    value: float


class _Score(msgspec.Struct, forbid_unknown_fields=True):
    round: Count
    metric: str
    value: float
    floor: float
    samples: Count


class _Progress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A result of `to_json`."""

    images_seen: Count
    scores: list[_Score]
    best: _Best | None
    scores_since_best: Count
    ended_early: bool
    update_norms: list[Annotated[float, Meta(ge=0, le=sys.float_info.max)]] | None = None
    outlier_counts: list[Count] | None = None
    augment_probability: Annotated[float, Meta(ge=0, le=1)] | None = None
    spread: Annotated[float, Meta(ge=0, le=sys.float_info.max)] | None = None
