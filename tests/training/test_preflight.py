"""Checks of this rank's machine before training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.training import preflight


def test_bfloat16_on_a_cpu_without_it_is_refused(monkeypatch):
    training = replace(Config().training, autocast="bfloat16", device="cpu")
    config = replace(Config(), training=training)
    monkeypatch.setattr(preflight, "multiplies_bfloat16", lambda: True)
    preflight.check_machine(config)
    monkeypatch.setattr(preflight, "multiplies_bfloat16", lambda: False)
    with pytest.raises(UserError) as error:
        preflight.check_machine(config)
    assert str(error.value) == (
        "training.autocast is 'bfloat16', but this CPU has neither avx512_bf16 nor AMX and would "
        "be slower with it; use 'off'"
    )
