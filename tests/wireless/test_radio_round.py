"""Transfer times of a round, against the physics and against a simulation frame by frame."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from shannon import NO_FADING, rate

from fedgan_mpi.config import WirelessConfig
from fedgan_mpi.wireless.cell import Cell, RadioRound

BITS = 16


def make_round(cell: Cell, participants: list[int]) -> RadioRound:
    """A round without compute time."""
    return RadioRound(cell=cell, participants=participants, device_seconds={}, server_seconds=0.0)


def test_transfer_times_match_a_simulation_of_frames_within_one_percent():
    """Frames of 10 ms, each with its own fading, until all bits have arrived.

    Uploads run in parallel. In every frame, the multicast uses the rate of the weakest participant.
    """
    frame_s, numbers = 0.01, 20_000_000
    cell = Cell(WirelessConfig(), 6)
    participants = [1, 3, 4, 6]
    ready = {1: 3.0, 3: 0.5, 4: 0.0, 6: 9.0}
    radio = make_round(cell, participants)
    stream, bits = np.random.default_rng(3), numbers * BITS

    def seconds(rates: np.ndarray) -> float:
        sent = np.cumsum(rates * frame_s)
        last = int(np.searchsorted(sent, bits))
        assert last < len(sent)
        return (last + 1 - (sent[last] - bits) / (rates[last] * frame_s)) * frame_s

    def draw_fading() -> np.ndarray:
        return stream.exponential(size=40_000)

    def upload(k: int) -> float:
        distance_m = cell.distances_m[k - 1]
        return seconds(np.array([rate(distance_m, 24, 2.5e6, fading) for fading in draw_fading()]))

    slowest = max(ready[k] + upload(k) for k in participants)
    assert radio.uploads(ready, numbers) == pytest.approx(slowest, rel=0.01)

    multicast = np.min(
        [
            [rate(cell.distances_m[k - 1], 46, 10e6, fading) for fading in draw_fading()]
            for k in participants
        ],
        axis=0,
    )
    assert radio.broadcast(numbers) == pytest.approx(seconds(multicast), rel=0.01)
    # The weakest participant changes from frame to frame, which costs more than the farthest one.
    farthest_m = max(cell.distances_m[k - 1] for k in participants)
    alone = seconds(np.array([rate(farthest_m, 46, 10e6, fading) for fading in draw_fading()]))
    assert radio.broadcast(numbers) > 1.01 * alone


def test_tdma_sends_one_after_the_other_on_the_whole_band():
    cell = Cell(replace(NO_FADING, multiplexing="tdma"), 3)
    one, two, three = (16e6 / rate(distance_m, 24, 10e6) for distance_m in cell.distances_m)
    ready = {1: 100.0, 2: 0.0, 3: 50.0}
    radio = make_round(cell, [1, 2, 3])
    assert max(one, two, three) < 50
    assert radio.uploads(ready, 1_000_000) == pytest.approx(100 + one)
    together = radio.uploads(dict.fromkeys(ready, 0.0), 1_000_000)
    assert together == pytest.approx(one + two + three)
    each = [16e6 / rate(distance_m, 46, 10e6) for distance_m in cell.distances_m]
    assert list(radio.deliveries(1_000_000).values()) == pytest.approx(np.cumsum(each))


def test_unicast_splits_band_and_power():
    cell = Cell(replace(NO_FADING, downlink="unicast"), 4)
    radio = make_round(cell, [1, 2, 3, 4])
    quarter_dbm = 46 - 10 * math.log10(4)
    each = [16e6 / rate(distance_m, quarter_dbm, 2.5e6) for distance_m in cell.distances_m]
    assert list(radio.deliveries(1_000_000).values()) == pytest.approx(each)
    assert radio.broadcast(1_000_000) == pytest.approx(max(each))


def test_multicast_uses_the_rate_of_the_farthest_participant():
    cell = Cell(NO_FADING, 4)
    expected = 16e6 / rate(max(cell.distances_m), 46, 10e6)
    assert make_round(cell, [1, 2, 3, 4]).broadcast(1_000_000) == pytest.approx(expected)


def test_times_are_proportional_to_the_bits_per_parameter():
    times = [
        make_round(Cell(replace(NO_FADING, bits_per_parameter=bits), 1), [1]).uploads(
            {1: 0.0}, 1000
        )
        for bits in (8, 16, 32)
    ]
    assert times == pytest.approx([times[1] / 2, times[1], 2 * times[1]], rel=1e-12)
