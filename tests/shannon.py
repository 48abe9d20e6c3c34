"""The physics of a radio link, independent of the package: Shannon rates from powers in watts."""

from __future__ import annotations

import math

from fedgan_mpi.config import WirelessConfig

NO_FADING = WirelessConfig(fading="none")


def watts(dbm: float) -> float:
    return 1e-3 * 10 ** (dbm / 10)


def rate(distance_m: float, power_dbm: float, bandwidth_hz: float, fading: float = 1.0) -> float:
    """Return the capacity of a link with the default path loss and noise, bits per second."""
    received = watts(power_dbm) * 10 ** (-(128.1 + 37.6 * math.log10(distance_m / 1000)) / 10)
    noise = watts(-174) * bandwidth_hz
    return bandwidth_hz * math.log2(1 + received * fading / noise)
