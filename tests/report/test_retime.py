"""Wireless seconds of stored runs in another cell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_up_runs import add_devices, make_run

from fedgan_mpi.config import WirelessConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.costs import cumulative_cost, retime
from fedgan_mpi.report.history import read_history
from fedgan_mpi.wireless.cell import Cell


def test_stored_rounds_take_the_seconds_of_the_other_cell(tmp_path):
    """Serial rounds of ren, calculated from their participants by hand."""
    flags = ["--participation.policy=random", "--participation.count=2", "--model.width=16"]
    flags += ["--training.generator_steps=6", "--training.generator_batch_size=32"]
    run = read_history(add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, *flags), (1, 3), (2,)))
    config = WirelessConfig(fading="none", device_macs_per_second=(1e9, 2e9, 3e9), seed=4)
    timed = retime(run, config)
    assert "wireless_seconds" not in run.rounds[0]
    distances_m = Cell(config, 3).distances_m

    def rate(k: int, power_dbm: float, bandwidth_hz: float) -> float:
        loss = 128.1 + 37.6 * math.log10(distances_m[k - 1] / 1000)
        snr = 10 ** ((power_dbm - loss + 174) / 10) / bandwidth_hz
        return bandwidth_hz * math.log2(1 + snr)

    theta, phi = 143_840, 42_432
    server = 6 * 32 * 5.777408e6 / 1e12  # n_g = 6, 32 fakes
    for line, present in zip(timed.rounds[:2], ((1, 3), (2,)), strict=True):
        share, batches = 10e6 / len(present), {1: 32, 2: 32, 3: 20}
        expected = 16 * (theta + phi) / min(rate(k, 46, 10e6) for k in present)
        expected += max(
            batches[k] * (1.216512e6 + 6.559744e6) / (k * 1e9) + 16 * phi / rate(k, 24, share)
            for k in present
        )
        expected += len(present) * phi / 1e12 + server
        assert line["wireless_seconds"] == pytest.approx(expected, rel=1e-9)
    total = cumulative_cost(timed, "wireless")[-1]
    assert total == pytest.approx(sum(line["wireless_seconds"] for line in timed.rounds))
    narrow = retime(timed, replace(config, bandwidth_hz=1e6))
    assert cumulative_cost(narrow, "wireless")[-1] > 2 * total


def test_a_run_whose_policy_used_its_cell_is_not_timed_in_another(tmp_path):
    flags = ["--participation.policy=best_channel", "--participation.count=2"]
    run = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, *flags), (1, 2))
    sentence = "a cannot be timed in another cell: participation.policy is 'best_channel'"
    with pytest.raises(UserError, match=sentence):
        retime(read_history(run), WirelessConfig())


def test_a_run_with_late_uploads_is_not_timed_in_another_cell(tmp_path):
    flags = ["--wireless.on=true", "--algorithm.staleness=2"]
    run = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, *flags), (1, 2))
    with pytest.raises(UserError, match=r"a cannot be timed in another cell: algorithm\.staleness"):
        retime(read_history(run), WirelessConfig())


def test_runs_without_devices_and_measured_times_are_refused(tmp_path):
    run = make_run(tmp_path / "b", {0: 9, 40: 5})
    with pytest.raises(UserError, match=r"b/devices.json is missing"):
        retime(read_history(run), WirelessConfig())
    add_devices(run, (1, 2, 3))
    with pytest.raises(UserError, match="'measured', but must be 'macs'"):
        retime(read_history(run), WirelessConfig(compute="measured"))
