"""The timeline of late uploads: its rules for random cells, and its limit without staleness."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_clock import make

from fedgan_mpi.wireless.timeline import Timeline

THETA, PHI = 5000, 3000


def timeline(clock, *, staleness, is_parallel=False) -> Timeline:
    """Return the timeline of three devices that all start as soon as they are idle."""

    def idle(t):
        return [k for k in (1, 2, 3) if k not in result.busy(t)]

    result = Timeline(
        clock, idle, staleness=staleness, is_parallel=is_parallel, down=THETA + PHI, up=PHI
    )
    return result


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
def test_without_staleness_a_round_lasts_as_the_clock_says(schedule):
    clock = make(algorithm={"schedule": schedule})
    line = timeline(clock, staleness=0, is_parallel=schedule == "parallel")
    for t in range(3):
        assert line.round(t).arrived == line.round(t).in_flight == [1, 2, 3]
        assert line.seconds(t, []) == pytest.approx(clock.seconds(t, [1, 2, 3]), rel=1e-9)


@pytest.mark.parametrize("is_parallel", [False, True])
@pytest.mark.parametrize("staleness", [1, 2, 5])
def test_every_upload_is_merged_once_and_within_the_bound(staleness, is_parallel):
    stream, oldest = np.random.default_rng(staleness), 0
    for _ in range(10):
        rates = tuple(10 ** stream.uniform(6, 10, 3))
        clock = make(device_macs_per_second=rates, server_macs_per_second=1e10)
        line = timeline(clock, staleness=staleness, is_parallel=is_parallel)
        started: dict[int, int] = {}
        for t in range(60):
            rounds = line.round(t)
            for k in rounds.in_flight:
                started.setdefault(k, t)
            assert len(rounds.arrived) >= math.ceil(len(rounds.in_flight) / 2)
            for k in rounds.arrived:
                oldest = max(oldest, t - started[k])
                assert t - started.pop(k) <= staleness
            assert rounds.end > (line.round(t - 1).end if t else 0.0)
    assert oldest == staleness


def test_stragglers_delay_a_round_less_often_with_more_staleness():
    """Device 1 is ten times slower than the others."""
    ends = []
    for staleness in (0, 1, 2, 4):
        clock = make(device_macs_per_second=(1e8, 1e9, 1e9))
        ends.append(timeline(clock, staleness=staleness).round(59).end)
    assert ends == sorted(ends, reverse=True) and ends[3] < 0.5 * ends[0]
