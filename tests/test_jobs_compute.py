"""Whole jobs with a 16-bit wire and bfloat16 inside the networks."""

from __future__ import annotations

import re

import pytest
from whole_jobs import SMALL, copy_without_last_checkpoint, generator, lines, losses, run

from fedgan_mpi.cluster.processor import multiplies_bfloat16

NARROW = [
    "--link.wire_dtype=bfloat16",
    "--link.error_feedback=true",
    "--training.memory_format=channels_last",
    "--data.devices=5",
    "--participation.policy=round_robin",
    "--participation.count=3",
    "--checkpoint.every=3",
    *SMALL,
]


def test_a_narrow_run_resumes_bitwise_on_other_ranks_and_sends_what_it_announced(tmp_path):
    """Residuals of devices and server come back, and kernels that lie channels last."""
    options = NARROW
    if multiplies_bfloat16():
        options = [*NARROW, "--training.autocast=bfloat16"]
    done = run(4, "--run.name", "a", "--training.rounds", "6", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, cut = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    copy_without_last_checkpoint(whole, cut)
    done = run(3, "--resume", "runs/b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(whole) == losses(cut) and len(losses(cut)) == 6
    assert generator(whole) == generator(cut)

    announced = run(1, "--dry-run", *options, cwd=tmp_path).stdout
    wide = run(1, "--dry-run", *SMALL, *options[3:6], cwd=tmp_path).stdout
    (line,) = [line for line in lines(whole) if line.get("round") == 2 and "bytes_up" in line]
    for way, key in (("down", "bytes_down"), ("up", "bytes_up")):
        number = re.compile(rf"bytes {way} a round +([\d,]+)")
        narrow, full = (int(number.search(t)[1].replace(",", "")) for t in (announced, wide))
        assert line[key] == narrow == full // 2 > 0

    done = run(3, "--resume", "runs/b", "--link.wire_dtype", "float16", cwd=tmp_path)
    assert done.returncode == 1
    assert "link.wire_dtype is 'float16', but must be 'bfloat16' as in" in done.stderr


@pytest.mark.skipif(multiplies_bfloat16(), reason="this CPU multiplies bfloat16")
def test_a_cpu_that_would_be_slower_with_bfloat16_is_refused(tmp_path):
    done = run(2, "--training.autocast", "bfloat16", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("this CPU has neither avx512_bf16 nor AMX") == 1
