"""Checks before training: of this rank's machine, of a resumed run, of fixed layers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fedgan_mpi.checkpoint.format import CheckpointManifest
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import config_table
from fedgan_mpi.errors import UserError
from fedgan_mpi.training import preflight
from fedgan_mpi.training.resume import check_experiment
from fedgan_mpi.training.setup import check_networks


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


@pytest.mark.parametrize(
    ("schedule", "rounds", "warns"),
    [("cosine", 9, True), ("cosine", 6, False), ("constant", 9, False)],
)
def test_more_rounds_of_a_schedule_are_mentioned(tmp_path, caplog, schedule, rounds, warns):
    def configure(rounds):
        training = replace(Config().training, lr_schedule=schedule, rounds=rounds)
        return replace(Config(), training=training)

    manifest = CheckpointManifest(
        path=tmp_path,
        round=6,
        progress={},
        configuration=config_table(configure(6)),
        shards_sha256="a",
        files={},
    )
    shards = SimpleNamespace(sha256="a")
    check_experiment(
        manifest, SimpleNamespace(config=configure(rounds), manifest=shards, run=tmp_path)
    )
    assert ("learning rates continue as if it had always been 9" in caplog.text) == warns


@pytest.mark.parametrize("layers", [0, 1])
def test_fixed_layers_of_a_new_discriminator_are_mentioned(caplog, layers):
    training = replace(Config().training, freeze_discriminator=layers)
    check_networks(replace(Config(), training=training), (1, 16, 16), 10, 2)
    assert ("fixes random layers" in caplog.text) == (layers > 0)
