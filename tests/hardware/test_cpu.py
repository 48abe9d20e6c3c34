"""Detection of CPUs with bfloat16 instructions."""

from __future__ import annotations

import pytest

from fedgan_mpi.hardware.cpu import multiplies_bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("flags : fpu amx_bf16\n", True),
        ("Features : fp asimd bf16\n", True),
        ("flags : fpu avx2 avx512f avx512_bf16x\n", False),
        ("model name: amx_bf16\nflags: fpu\n", False),
    ],
)
def test_bfloat16_is_detected_by_the_cpus_flags(tmp_path, text, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert multiplies_bfloat16(str(path)) == expected
    assert not multiplies_bfloat16(str(tmp_path / "missing"))
