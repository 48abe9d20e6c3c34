"""The state of a device between its rounds: optimizer moments, and sections of the rank's vector.

Hosted devices train one after the other on the same pair of networks. A device's own sections, such
as its discriminator or its BatchNorm statistics, are copied into the vector before its local round
and back afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

from torch import Tensor

from fedgan_mpi.nn.optimizers import Optimizer


class LocalState:
    """One device's optimizers and own sections."""

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        sections: Sequence[Tensor],
        moments: Literal["persistent", "reset", "averaged"],
        *,
        can_undo: bool,
    ) -> None:
        """sections: slices of the rank's vector that are this device's own.
        can_undo: keep a copy from before each local round."""
        self.optimizers, self._moments_rule = optimizers, moments
        self.sections = list(sections)
        self.own = [section.clone() for section in sections]
        """The device's values of the sections."""
        self._can_undo = can_undo
        self._before: tuple[list[dict[str, Any]], list[Tensor]] | None = None

    def enter(self, steps_before: int) -> None:
        """Copy the own sections into the vector and prepare the moments for a local round.

        steps_before: optimizer steps that averaged moments have accumulated.
        """
        if self._can_undo:
            self._before = deepcopy((self.moments(), self.own))
        for section, own in zip(self.sections, self.own, strict=True):
            section.copy_(own)
        # Only parameters are averaged by default. Each device keeps its moments, also over rounds
        # that it skips; "reset" and "averaged" change this.
        for optimizer in self.optimizers:
            if self._moments_rule == "reset":
                optimizer.reset()
            elif self._moments_rule == "averaged":
                optimizer.set_steps(steps_before)
            optimizer.begin_round()

    def leave(self) -> None:
        """Copy the own sections back from the vector after a local round."""
        for optimizer in self.optimizers:
            optimizer.end_round()
        for section, own in zip(self.sections, self.own, strict=True):
            own.copy_(section)

    def undo(self) -> None:
        """Restore moments and own sections as they were before the last local round."""
        if self._before is not None:  # no local round has run otherwise
            self.load(*self._before)

    def moments(self) -> list[dict[str, Any]]:
        """Return the optimizers' states, not copied."""
        return [optimizer.state() for optimizer in self.optimizers]

    def load(self, moments: list[dict[str, Any]], own: list[Tensor]) -> None:
        """Overwrite moments and own sections."""
        for optimizer, saved in zip(self.optimizers, moments, strict=True):
            optimizer.load_state(saved)
        for section, saved_section in zip(self.own, own, strict=True):
            section.copy_(saved_section)
