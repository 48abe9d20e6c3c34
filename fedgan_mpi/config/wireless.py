"""Options of the simulated radio cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedgan_mpi.config.require import require


@dataclass(frozen=True, kw_only=True)
class WirelessConfig:
    """The simulated radio cell.

    The defaults are common values of the literature.
    """

    on: bool = False
    """Write the simulated time of each round to stats.jsonl, as wireless_seconds."""
    seed: int = 0
    """Seed of device positions and shadowing. Independent of run.seed, so that runs with different
    seeds share a cell."""
    radius_m: float = 500.0
    """Radius of the cell, m. Devices are distributed uniformly over its area."""
    nearest_m: float = 10.0
    """Minimum distance between a device and the server, m."""
    path_loss_db_at_1km: float = 128.1
    """Path loss at 1 km, dB."""
    path_loss_db_per_decade: float = 37.6
    """Additional path loss per tenfold distance, dB."""
    shadowing_db: float = 0.0
    """Standard deviation of log-normal shadowing per device, dB. 0: no shadowing."""
    noise_dbm_per_hz: float = -174.0
    """Noise power spectral density, dBm/Hz."""
    noise_figure_db: float = 0.0
    """Noise figure of a receiver, dB."""
    device_power_dbm: float = 24.0
    """Transmit power of a device, dBm."""
    server_power_dbm: float = 46.0
    """Transmit power of the server, dBm."""
    bandwidth_hz: float = 10e6
    """Total bandwidth of the cell per direction, Hz."""
    multiplexing: Literal["ofdma", "tdma"] = "ofdma"
    """How N participants share the band. ofdma: each gets 1/N of it at the same time. tdma: each
    gets all of it in turn."""
    fading: Literal["rayleigh", "none"] = "rayleigh"
    """rayleigh: transfers take the ergodic rate, because they span many fading blocks; policies
    choose participants by one fading draw per round. none: the channel has its mean gain."""
    downlink: Literal["multicast", "unicast"] = "multicast"
    """How models reach the participants. multicast: sent once, at the lowest rate among them.
    unicast: sent to each one. Generated images that differ by device are always sent by unicast."""
    bits_per_parameter: int = 16
    """Bits per number over the air, independent of link.wire_dtype."""
    compute: Literal["macs", "measured"] = "macs"
    """Computation time. macs: multiply-accumulate operations of the networks, divided by a rate.
    measured: time on this machine."""
    device_macs_per_second: tuple[float, ...] = (1e11,)
    """Multiply-accumulate operations per second of device 1, 2, …. One number: the rate of every
    device."""
    server_macs_per_second: float = 1e12
    """Multiply-accumulate operations per second of the server."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "wireless.seed", self.seed, "from 0 to 2^63 - 1")
        for key in ("radius_m", "nearest_m", "bandwidth_hz", "server_macs_per_second"):
            value = getattr(self, key)
            require(0 < value < math.inf, f"wireless.{key}", value, "above 0 and finite")
        right = f"at most wireless.radius_m, {self.radius_m:g}"
        require(self.nearest_m <= self.radius_m, "wireless.nearest_m", self.nearest_m, right)
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
        valid = len(rates) > 0 and all(0 < rate < math.inf for rate in rates)
        right = "numbers above 0, one for all devices or one each"
        require(valid, "wireless.device_macs_per_second", list(rates), right)
