"""Devices that die while others are chosen by channel and by update."""

from __future__ import annotations

import re

import pytest
from test_recovery import exact, job, needs_ulfm, same

from fedgan_mpi.testing.runs import generator_bytes

pytestmark = pytest.mark.jobs


@needs_ulfm
@pytest.mark.parametrize("policy", ["importance", "proportional_fair"])
def test_the_others_are_chosen_as_if_it_had_left(tmp_path, policy):
    """Norms go back to the round that all have finished."""
    flags = ["--participation.policy", policy, "--participation.count", "2"]
    done = job(tmp_path, "--run.name", "a", *flags, DIES="2:19")
    assert done.returncode == 0, done.stderr
    (told,) = re.findall(r"with device 2; .*after round (\d+)", done.stdout)
    oracle = job(tmp_path, "--run.name", "b", *flags, ulfm=False, LEAVES=f"2:{told}")
    assert oracle.returncode == 0, oracle.stderr
    runs = tmp_path / "runs"
    assert exact(runs / "a") == same(runs / "b") and 0 < int(told) < 8
    assert generator_bytes(runs / "a") == generator_bytes(runs / "b")
