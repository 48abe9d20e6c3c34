"""The simulated radio cell: where devices are, at what rates they send and hear, and how long
transfers of a round take. Knows no algorithm and no network; all settings are options, and ours.

Units: metres, Hz, dBm (decibels over 1 mW), seconds, bits a second; sizes are in numbers
(parameters, pixels) of `bits_per_parameter` bits each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.config import WirelessConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.random_streams import Purpose, numpy_stream

Array = NDArray[np.float64]


class Cell:
    """Places and mean channels of device 1, 2, …, the same for everyone with the same options."""

    def __init__(self, config: WirelessConfig, devices: int) -> None:
        self.config = config
        stream = numpy_stream(config.seed, Purpose.CELL)
        # Even by area: the square root of an even draw.
        self.distances_m: Array = np.maximum(
            config.radius_m * np.sqrt(stream.random(devices)), config.nearest_m
        )
        self.angles: Array = 2 * np.pi * stream.random(devices)
        """Radians; for the picture alone."""
        decades = np.log10(self.distances_m / 1000)
        loss_db = config.path_loss_db_at_1km + config.path_loss_db_per_decade * decades
        self.path_loss_db: Array = loss_db + config.shadowing_db * stream.standard_normal(devices)

    def snr(self, power_dbm: float, bandwidth_hz: float) -> Array:
        """Mean signal-to-noise ratio at a device or from it, as a plain ratio."""
        config = self.config
        noise_dbm = config.noise_dbm_per_hz + config.noise_figure_db + 10 * np.log10(bandwidth_hz)
        ratio: Array = 10 ** ((power_dbm - self.path_loss_db - noise_dbm) / 10)
        return ratio

    def up_rates(self, participants: int) -> Array:
        """Bits a second that each device sends at when so many share the band, mean over the
        fading."""
        band = self._band(participants)
        return self._rate(band, self.snr(self.config.device_power_dbm, band))

    def down_rates(self, participants: int) -> Array:
        """The same of what each device is sent apart; the server's power is split as the band
        is."""
        band = self._band(participants)
        whole = self.snr(self.config.server_power_dbm, band)
        return self._rate(band, whole * band / self.config.bandwidth_hz)

    def multicast_rate(self, devices: Sequence[int]) -> float:
        """Bits a second on the whole band that all of these devices hear.

        Every block goes at the rate of whom it reaches worst. The least of independent exponentials
        is exponential, its inverse mean the sum of theirs.
        """
        band = self.config.bandwidth_hz
        snr = self.snr(self.config.server_power_dbm, band)[np.array(devices) - 1]
        fades = self.config.fading == "rayleigh"
        weakest = 1 / np.sum(1 / snr) if fades else snr.min()
        return float(self._rate(band, np.array([weakest]))[0])

    def drawn_rates(self, seed: int, t: int, participants: int) -> Array:
        """Up rates with round t's own fading: what the policies go by. seed: the run's."""
        if self.config.fading == "none":
            return self.up_rates(participants)
        power = numpy_stream(seed, Purpose.FADING, t).exponential(size=len(self.distances_m))
        band = self._band(participants)
        snr = self.snr(self.config.device_power_dbm, band)
        rates: Array = band * np.log2(1 + snr * power)
        return rates

    def _band(self, participants: int) -> float:
        """Hz of one transfer."""
        shared = self.config.multiplexing == "ofdma"
        return self.config.bandwidth_hz / (participants if shared else 1)

    def _rate(self, bandwidth_hz: float, snr: Array) -> Array:
        if self.config.fading == "none":
            rate: Array = bandwidth_hz * np.log2(1 + snr)
            return rate
        return ergodic_rate(bandwidth_hz, snr)


def ergodic_rate(bandwidth_hz: float, snr: Array) -> Array:
    """E[B log2(1 + γ x)] over Rayleigh fading, x ~ Exp(1): B e^{1/γ} E1(1/γ) / ln 2, bits a second.

    A mean rate and not a mean time: with one draw for a whole upload, E[1/rate] is infinite.
    """
    from scipy.special import hyperu

    # e^x E1(x) = U(1, 1, x), which neither overflows nor loses digits.
    rate: Array = bandwidth_hz / np.log(2) * hyperu(1, 1, 1 / snr)
    return rate


@dataclass(frozen=True, kw_only=True)
class RadioRound:
    """One round: who takes part, how long each computes, and how long what they send takes.

    The methods are what rounds' times are made of, as verbs are what rounds are made of.
    """

    cell: Cell
    participants: Sequence[int]
    device: Mapping[int, float]
    """Seconds that each participant computes in the round."""
    server: float
    """Seconds that the server computes, apart from averaging."""

    def broadcast(self, numbers: int) -> float:
        """Seconds until every participant has the same numbers."""
        if self.cell.config.downlink == "unicast":
            return max(self.deliveries(numbers).values())
        return self._bits(numbers) / self.cell.multicast_rate(self.participants)

    def deliveries(self, numbers: int) -> dict[int, float]:
        """Seconds after which each participant has so many numbers of its own."""
        seconds = self._apart(self.cell.down_rates(len(self.participants)), numbers)
        if self.cell.config.multiplexing == "tdma":
            return dict(zip(seconds, np.cumsum(list(seconds.values())).tolist(), strict=True))
        return seconds

    def uploads(self, ready: Mapping[int, float], numbers: int) -> float:
        """Seconds until the server has so many numbers of each participant, each from when it is
        ready: max_k (ready_k + U_k). tdma: whoever is ready first sends first."""
        seconds = self._apart(self.cell.up_rates(len(self.participants)), numbers)
        if self.cell.config.multiplexing == "ofdma":
            return max(ready[k] + seconds[k] for k in self.participants)
        done = 0.0
        for k in sorted(self.participants, key=lambda k: ready[k]):
            done = max(done, ready[k]) + seconds[k]
        return done

    def averaging(self, numbers: int) -> float:
        """Seconds in which the server adds up all participants' numbers."""
        return len(self.participants) * numbers / self.cell.config.server_macs_per_second

    def _apart(self, rates: Array, numbers: int) -> dict[int, float]:
        return {k: self._bits(numbers) / float(rates[k - 1]) for k in self.participants}

    def _bits(self, numbers: int) -> int:
        return numbers * self.cell.config.bits_per_parameter


def macs_per_second(config: WirelessConfig, devices: int) -> list[float]:
    """Of device 1, 2, … Raises UserError where there are neither one number nor one a device."""
    rates = config.device_macs_per_second
    if len(rates) not in (1, devices):
        raise UserError(
            f"wireless.device_macs_per_second has {len(rates)} numbers, but must have one, or one "
            f"for each of the {devices} devices"
        )
    return [*rates] if len(rates) == devices else [*rates] * devices
