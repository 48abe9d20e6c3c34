"""Positions and rates of the simulated cell, against the path loss model and Shannon's formula."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from shannon import NO_FADING, rate

from fedgan_mpi.wireless.cell import Cell, RadioRound, ergodic_rate


def test_rates_follow_the_units_of_the_options():
    """16-bit |D| of the 64 pixel pair over 1 MHz and 24 dBm: 2.80 s from 100 m, 6.27 s from 500 m.

    The times were calculated by hand.
    """
    cell = Cell(NO_FADING, 10)
    for distance_m, seconds in ((100, 2.80), (250, 4.09), (500, 6.27)):
        cell.distances_m[:] = distance_m
        cell.path_loss_db[:] = 128.1 + 37.6 * math.log10(distance_m / 1000)
        rates = cell.uplink_rates(10)  # 10 MHz over ten devices
        assert rates == pytest.approx(rate(distance_m, 24, 1e6), rel=1e-12)
        assert 2_765_568 * 16 / rates[0] == pytest.approx(seconds, abs=0.005)
        # A single participant gets the whole band.
        radio = RadioRound(cell=cell, participants=[3], device_seconds={3: 0.0}, server_seconds=0.0)
        alone = radio.uploads({3: 0.0}, 2_765_568)
        assert alone == pytest.approx(2_765_568 * 16 / rate(distance_m, 24, 10e6), rel=1e-12)


def test_positions_are_uniform_in_the_disc_and_depend_on_the_seed_of_the_cell():
    cell = Cell(replace(NO_FADING, nearest_m=1e-3), 20_000)
    # The disc of radius R/√2 has half of the area.
    assert abs((cell.distances_m < 500 / math.sqrt(2)).mean() - 0.5) < 0.015
    assert cell.distances_m.max() <= 500
    near = Cell(replace(NO_FADING, nearest_m=400), 1000).distances_m
    assert near.min() == 400 and (near == 400).mean() == pytest.approx(0.64, abs=0.05)
    assert (Cell(NO_FADING, 5).distances_m == Cell(NO_FADING, 5).distances_m).all()
    other = Cell(replace(NO_FADING, seed=1), 5)
    assert (Cell(NO_FADING, 5).distances_m != other.distances_m).all()


def test_shadowing_is_one_fixed_value_per_device():
    plain, shadowed = Cell(NO_FADING, 5000), Cell(replace(NO_FADING, shadowing_db=8), 5000)
    extra = shadowed.path_loss_db - plain.path_loss_db
    assert (shadowed.distances_m == plain.distances_m).all()
    assert abs(extra.mean()) < 0.5 and extra.std() == pytest.approx(8, rel=0.05)


def test_noise_figure_adds_to_the_noise_density():
    same = Cell(replace(NO_FADING, noise_figure_db=3, noise_dbm_per_hz=-177), 4)
    assert same.uplink_rates(4) == pytest.approx(Cell(NO_FADING, 4).uplink_rates(4), rel=1e-12)
    noisier = Cell(replace(NO_FADING, noise_figure_db=3), 4)
    assert (noisier.uplink_rates(4) < same.uplink_rates(4)).all()


@pytest.mark.parametrize("snr", [1e-3, 0.1, 1.0, 30.0, 1e5])
def test_the_ergodic_rate_is_the_mean_over_the_fading(snr):
    """By quadrature and by Monte Carlo."""
    closed = float(ergodic_rate(1e6, np.array([snr]))[0])
    mean, _ = quad(lambda x: math.exp(-x) * math.log2(1 + snr * x), 0, math.inf, epsabs=0)
    assert closed == pytest.approx(1e6 * mean, rel=1e-6)
    power = np.random.default_rng(0).exponential(size=1_000_000)
    assert closed == pytest.approx(1e6 * np.log2(1 + snr * power).mean(), rel=0.01)
    assert closed < 1e6 * math.log2(1 + snr)  # Jensen's inequality
