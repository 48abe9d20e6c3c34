"""Whole jobs with a 16-bit wire and bfloat16 inside the networks."""

from __future__ import annotations

import pytest
from whole_jobs import run

from fedgan_mpi.hardware.cpu import multiplies_bfloat16


@pytest.mark.skipif(multiplies_bfloat16(), reason="this CPU multiplies bfloat16")
def test_a_cpu_that_would_be_slower_with_bfloat16_is_refused(tmp_path):
    done = run(2, "--training.autocast", "bfloat16", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("this CPU has neither avx512_bf16 nor AMX") == 1
