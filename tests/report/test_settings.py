"""Values of a run that are not the defaults."""

from __future__ import annotations

from made_up_runs import add_devices, make_run

from fedgan_mpi.report.history import read_history
from fedgan_mpi.report.settings import changed_values


def changed(directory, *flags):
    """Return {key: (value, default)} of a run on images of 32 pixels."""
    run = add_devices(make_run(directory, {0: 9, 40: 5}, *flags), (1, 2, 3))
    rows = changed_values(read_history(run))
    return {row["key"]: (row["value"], row["default"]) for row in rows}


def test_a_default_of_this_size_of_images_is_no_change(tmp_path):
    chosen = ["--training.generator_lr=5e-4", "--training.loss=nonsaturating", "--model.ema=0.99"]
    keys = {"training.generator_lr", "training.loss", "model.ema"}
    assert not changed(tmp_path / "a", *chosen).keys() & keys
    small = ["--training.generator_lr=3e-4", "--training.loss=hinge", "--model.ema=0.998"]
    of_small = changed(tmp_path / "b", *small)
    assert of_small["training.generator_lr"] == ("0.0003", "0.0005")
    assert of_small["training.loss"] == ('"hinge"', '"nonsaturating"')
    assert of_small["training.rounds"] == ("40", "600")
