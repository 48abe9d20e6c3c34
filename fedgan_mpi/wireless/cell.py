"""The simulated radio cell: device positions, data rates, and transfer times of a round.

Knows no algorithm and no network. The default constants are common practice; settings ours.

Units: metres, Hz, dBm, seconds, bits per second. Sizes count numbers (parameters, pixels) of
`bits_per_parameter` bits each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.config import WirelessConfig
from fedgan_mpi.random_streams import Purpose, numpy_stream

Array = NDArray[np.float64]


class Cell:
    """Positions and mean channels of devices 1, 2, …; the options alone determine them."""

    def __init__(self, config: WirelessConfig, devices: int) -> None:
        self.config = config
        stream = numpy_stream(config.seed, Purpose.CELL)
        # The square root makes positions uniform by area.
        self.distances_m: Array = np.maximum(
            config.radius_m * np.sqrt(stream.random(devices)), config.nearest_m
        )
        self.angles: Array = 2 * np.pi * stream.random(devices)
        """Radians; only the picture uses them."""
        decades = np.log10(self.distances_m / 1000)
        loss_db = config.path_loss_db_at_1km + config.path_loss_db_per_decade * decades
        self.path_loss_db: Array = loss_db + config.shadowing_db * stream.standard_normal(devices)

    def snr(self, power_dbm: float, bandwidth_hz: float) -> Array:
        """Return the mean signal-to-noise ratio of each device's channel, as a linear ratio."""
        config = self.config
        noise_dbm = config.noise_dbm_per_hz + config.noise_figure_db + 10 * np.log10(bandwidth_hz)
        ratio: Array = 10 ** ((power_dbm - self.path_loss_db - noise_dbm) / 10)
        return ratio

    def uplink_rates(self, participants: int) -> Array:
        """Return each device's mean uplink rate if this many participants share the band."""
        bandwidth_hz = self._bandwidth_hz(participants)
        return self._rate(bandwidth_hz, self.snr(self.config.device_power_dbm, bandwidth_hz))

    def downlink_rates(self, participants: int) -> Array:
        """Return each device's mean unicast rate; band and server power are split alike."""
        bandwidth_hz = self._bandwidth_hz(participants)
        full_power = self.snr(self.config.server_power_dbm, bandwidth_hz)
        return self._rate(bandwidth_hz, full_power * bandwidth_hz / self.config.bandwidth_hz)

    def multicast_rate(self, devices: Sequence[int]) -> float:
        """Return the rate on the whole band that all of these devices can decode.

        Each fading block uses the rate of its weakest receiver. The minimum of independent
        exponentials is exponential; its inverse mean is the sum of their inverse means.
        """
        bandwidth_hz = self.config.bandwidth_hz
        snr = self.snr(self.config.server_power_dbm, bandwidth_hz)[np.array(devices) - 1]
        weakest = 1 / np.sum(1 / snr) if self.config.fading == "rayleigh" else snr.min()
        return float(self._rate(bandwidth_hz, np.array([weakest]))[0])

    def faded_uplink_rates(self, seed: int, t: int, participants: int) -> Array:
        """Return uplink rates with the fading of round t, for the participation policies.

        `seed` is the seed of the run, not of the cell.
        """
        if self.config.fading == "none":
            return self.uplink_rates(participants)
        power = numpy_stream(seed, Purpose.FADING, t).exponential(size=len(self.distances_m))
        bandwidth_hz = self._bandwidth_hz(participants)
        snr = self.snr(self.config.device_power_dbm, bandwidth_hz)
        rates: Array = bandwidth_hz * np.log2(1 + snr * power)
        return rates

    def _bandwidth_hz(self, participants: int) -> float:
        """Return the bandwidth of one transfer."""
        is_shared = self.config.multiplexing == "ofdma"
        return self.config.bandwidth_hz / (participants if is_shared else 1)

    def _rate(self, bandwidth_hz: float, snr: Array) -> Array:
        if self.config.fading == "none":
            rate: Array = bandwidth_hz * np.log2(1 + snr)
            return rate
        return ergodic_rate(bandwidth_hz, snr)


def ergodic_rate(bandwidth_hz: float, snr: Array) -> Array:
    """Return E[B log2(1 + γ x)] for Rayleigh fading, x ~ Exp(1): B e^{1/γ} E1(1/γ) / ln 2.

    The clock needs a mean rate: with one fading draw per upload, the mean time E[1/rate] is
    infinite.
    """
    from scipy.special import hyperu

    # e^x E1(x) = U(1, 1, x), which neither overflows nor loses digits.
    rate: Array = bandwidth_hz / np.log(2) * hyperu(1, 1, 1 / snr)
    return rate


@dataclass(frozen=True, kw_only=True)
class RadioRound:
    """Participants, compute times and transfer times of one round.

    An algorithm's `wireless_seconds` is a formula over these methods.
    """

    cell: Cell
    participants: Sequence[int]
    device_seconds: Mapping[int, float]
    """Compute time of each participant."""
    server_seconds: float
    """Compute time of the server, without averaging."""

    def broadcast(self, numbers: int) -> float:
        """Return the seconds until every participant has the same numbers."""
        if self.cell.config.downlink == "unicast":
            return max(self.deliveries(numbers).values())
        return self._bits(numbers) / self.cell.multicast_rate(self.participants)

    def deliveries(self, numbers: int) -> dict[int, float]:
        """Return the arrival time of each participant's own message of this many numbers."""
        rates = self.cell.downlink_rates(len(self.participants))
        seconds = self._unicast(rates, self._bits(numbers))
        if self.cell.config.multiplexing == "tdma":
            return dict(zip(seconds, np.cumsum(list(seconds.values())).tolist(), strict=True))
        return seconds

    def uploads(
        self,
        ready: Mapping[int, float],
        numbers: int,
        bits: Callable[[int, int], int] = lambda numbers, each: numbers * each,
    ) -> float:
        """Return the seconds until the server has this many numbers from each participant.

        bits: (numbers, bits of a number) -> bits of the message.
        """
        return max(self.arrivals(ready, numbers, bits).values())

    def arrivals(
        self,
        ready: Mapping[int, float],
        numbers: int,
        bits: Callable[[int, int], int] = lambda numbers, each: numbers * each,
    ) -> dict[int, float]:
        """Return the arrival time of each participant's upload, which starts at `ready[k]`.

        With ofdma, all participants share the band: ready_k + U_k. With tdma they send one after
        the other, in the order of their start times.
        """
        rates, each = self.cell.uplink_rates(len(self.participants)), self._bits(1)
        seconds = self._unicast(rates, bits(numbers, each))
        if self.cell.config.multiplexing == "ofdma":
            return {k: ready[k] + seconds[k] for k in ready}
        arrivals, finished = {}, 0.0
        for k in sorted(ready, key=lambda k: ready[k]):
            arrivals[k] = finished = max(finished, ready[k]) + seconds[k]
        return arrivals

    def averaging(self, numbers: int) -> float:
        """Return the seconds in which the server sums all participants' numbers."""
        return len(self.participants) * numbers / self.cell.config.server_macs_per_second

    def _unicast(self, rates: Array, bits: int) -> dict[int, float]:
        return {k: bits / float(rates[k - 1]) for k in self.participants}

    def _bits(self, numbers: int) -> int:
        return numbers * self.cell.config.bits_per_parameter
