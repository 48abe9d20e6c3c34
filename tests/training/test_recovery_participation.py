"""Deaths of devices under participation policies with state."""

from __future__ import annotations

import re

import pytest
from dying_ranks import approximate_scores, needs_ulfm, run_job

from fedgan_mpi.testing.runs import generator_bytes, stats_without_seconds

pytestmark = pytest.mark.jobs


@needs_ulfm
@pytest.mark.parametrize("policy", ["importance", "proportional_fair"])
def test_participants_are_chosen_as_after_a_removal(tmp_path, policy):
    """The rollback restores the update norms of the last round that all ranks have finished."""
    flags = ["--participation.policy", policy, "--participation.count", "2"]
    done = run_job(tmp_path, "--run.name", "a", *flags, dies="2:19")
    assert done.returncode == 0, done.stderr
    (last_round,) = re.findall(r"with device 2; .*after round (\d+)", done.stderr)
    oracle = run_job(tmp_path, "--run.name", "b", *flags, survive=False, leaves=f"2:{last_round}")
    assert oracle.returncode == 0, oracle.stderr
    runs = tmp_path / "runs"
    assert stats_without_seconds(runs / "a") == approximate_scores(runs / "b")
    assert 0 < int(last_round) < 8
    assert generator_bytes(runs / "a") == generator_bytes(runs / "b")
