"""Metrics that one rank measures in a round."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LocalMetrics:
    """One rank's metrics of one round; training/round_metrics.py sums them over ranks."""

    d_loss: dict[int, float] = field(default_factory=dict)
    """Device -> mean loss of D, for participants hosted here that took steps."""
    g_loss: dict[int, float] = field(default_factory=dict)
    """Device -> mean loss of G; 0 is the server."""
    skipped: list[int] = field(default_factory=list)
    """Participants hosted here whose loss or update is not finite; they count as absent."""
    update_norms: dict[int, float] = field(default_factory=dict)
    """Device -> norm of its update, if the participation policy depends on it."""
    seconds_of_device: dict[int, float] = field(default_factory=dict)
    """Device -> seconds of its local round."""
    logged: dict[str, dict[int, float]] = field(default_factory=dict)
    """Name -> device -> value, from `Algorithm.log`; device 0 is the server."""
    images_drawn_before: int = 0
    """Real images that devices hosted here had drawn before the round."""
    seconds_local: float = 0.0
    seconds_server: float = 0.0

    def add_device_seconds(self, device: int, seconds: float) -> None:
        total = self.seconds_of_device.get(device, 0.0) + seconds
        self.seconds_of_device[device] = total

    def set_loss(self, losses: dict[int, float], player: int, loss: float | None) -> None:
        """Enter a mean loss; None means no steps."""
        if loss is not None:
            losses[player] = loss
