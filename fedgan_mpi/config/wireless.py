"""The simulated radio cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class WirelessConfig:
    """The simulated radio cell: who is where, what a round would take there. Common practice; the
    paper's own values are not public."""

    on: bool = False
    """Tell wireless_seconds of every round in stats.jsonl."""
    seed: int = 0
    """Seed of the cell: places and shadowing. Not the run's, so that runs of several seeds share
    it."""
    radius_m: float = 500.0
    """Radius of the disc that devices are placed in, evenly by area, metres."""
    nearest_m: float = 10.0
    """Least distance of a device from the server, metres."""
    path_loss_db_at_1km: float = 128.1
    """Path loss at 1 km, dB."""
    path_loss_db_per_decade: float = 37.6
    """What ten times the distance adds to it, dB."""
    shadowing_db: float = 0.0
    """Standard deviation of a device's own addition to it, dB; 0: none."""
    noise_dbm_per_hz: float = -174.0
    """Power density of the noise, dBm/Hz."""
    noise_figure_db: float = 0.0
    """What a receiver adds to it, dB."""
    device_power_dbm: float = 24.0
    """Transmit power of a device, dBm."""
    server_power_dbm: float = 46.0
    """Transmit power of the server, dBm."""
    bandwidth_hz: float = 10e6
    """Bandwidth of the whole cell, in either direction, Hz."""
    multiplexing: Literal["ofdma", "tdma"] = "ofdma"
    """ofdma: each of N participants has 1/N of the band, all at once. tdma: the whole band, one
    after the other."""
    fading: Literal["rayleigh", "none"] = "rayleigh"
    """rayleigh: transfers go at the mean rate over the fading, as they last for hundreds of its
    blocks; one draw a round chooses participants. none: the channel is its mean."""
    downlink: Literal["multicast", "unicast"] = "multicast"
    """How a model goes down: once, at the rate of the weakest participant, or to each apart. Fakes
    that differ by device go to each apart anyway."""
    bits_per_parameter: int = 16
    """Bits of a number over the air: 16 as in the paper, whatever link.wire_dtype is."""
    compute: Literal["macs", "measured"] = "macs"
    """Time of computation: multiply-accumulates, counted from the networks, over a rate, or as this
    machine took it."""
    device_macs_per_second: tuple[float, ...] = (1e11,)
    """Multiply-accumulates a second of device 1, 2, …; one number goes for all."""
    server_macs_per_second: float = 1e12
    """The same of the server."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "wireless.seed", self.seed, "from 0 to 2^63 - 1")
        for key in ("radius_m", "nearest_m", "bandwidth_hz", "server_macs_per_second"):
            value = getattr(self, key)
            require(0 < value < math.inf, f"wireless.{key}", value, "above 0 and finite")
        fits = self.nearest_m <= self.radius_m
        right = f"at most wireless.radius_m, {self.radius_m:g}"
        require(fits, "wireless.nearest_m", self.nearest_m, right)
        for key in ("shadowing_db", "noise_figure_db", "path_loss_db_per_decade"):
            value = getattr(self, key)
            require(0 <= value < math.inf, f"wireless.{key}", value, "at least 0 and finite")
        powers = ("device_power_dbm", "server_power_dbm", "noise_dbm_per_hz")
        for key in (*powers, "path_loss_db_at_1km"):
            value = getattr(self, key)
            require(math.isfinite(value), f"wireless.{key}", value, "finite")
        bits = self.bits_per_parameter
        require(1 <= bits <= 64, "wireless.bits_per_parameter", bits, "from 1 to 64")
        rates = self.device_macs_per_second
        fits = len(rates) > 0 and all(0 < rate < math.inf for rate in rates)
        right = "numbers above 0, one for all devices or one each"
        require(fits, "wireless.device_macs_per_second", list(rates), right)
