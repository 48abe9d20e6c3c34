"""Default values that depend on the size of the images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedgan_mpi.config import (
    AlgorithmConfig,
    Config,
    ModelConfig,
    TrainingConfig,
    WirelessConfig,
    choose_by_size,
)
from fedgan_mpi.config.by_size import choose_as_before
from fedgan_mpi.config.parsing import DEFAULTS

KEYS = (
    "generator_steps", "generator_batch_size", "generator_lr", "discriminator_lr", "loss",
)  # fmt: skip
SMALL = (6, 32, 3e-4, 3e-4, "hinge", 0.998)
LARGE = (1, 64, 5e-4, 5e-4, "nonsaturating", 0.99)


def values(config: Config) -> tuple:
    return (*(getattr(config.training, key) for key in KEYS), config.model.ema)


@pytest.mark.parametrize(
    "image_shape, expected",
    [((1, 8, 8), SMALL), ((3, 16, 16), SMALL), ((1, 16, 64), SMALL), ((1, 64, 16), SMALL),
     ((1, 17, 17), LARGE), ((3, 48, 64), LARGE), ((16, 256, 256), LARGE)],
)  # fmt: skip
def test_images_of_up_to_16_pixels_have_other_defaults(image_shape, expected):
    assert values(choose_by_size(Config(), image_shape)) == expected


def test_exactly_these_defaults_depend_on_the_size():
    small, large = (choose_by_size(Config(), (1, size, size)) for size in (16, 17))
    changed = {
        f"{section}.{key}"
        for section in ("training", "model")
        for key in vars(getattr(small, section))
        if vars(getattr(small, section))[key] != vars(getattr(large, section))[key]
    }
    assert changed == {*(f"training.{key}" for key in KEYS), "model.ema"}
    assert all(DEFAULTS[key] is None for key in changed)


def test_given_values_are_kept_and_a_second_choice_changes_nothing():
    training = TrainingConfig(generator_steps=2, generator_lr=0.25, loss="lsgan")
    config = replace(Config(), training=training)
    chosen = choose_by_size(config, (1, 16, 16))
    assert values(chosen) == (2, 32, 0.25, 3e-4, "lsgan", 0.998)
    assert choose_by_size(chosen, (1, 64, 64)) == chosen


def test_a_resumed_run_keeps_its_values_where_none_is_given():
    before = choose_by_size(Config(), (1, 16, 16))
    before = replace(before, training=replace(before.training, generator_lr=0.5))
    assert values(choose_as_before(Config(), before)) == (6, 32, 0.5, 3e-4, "hinge", 0.998)
    given = replace(Config(), training=TrainingConfig(generator_lr=0.25))
    assert choose_as_before(given, before).training.generator_lr == 0.25


@pytest.mark.parametrize("name", ["fedgan", "fegan", "fess_gda", "mdgan", "uagan"])
def test_algorithms_that_determine_the_steps_on_G_get_none(name):
    config = replace(Config(), algorithm=AlgorithmConfig(name=name))
    for size in (16, 64):
        assert choose_by_size(config, (1, size, size)).training.generator_steps is None


@pytest.mark.parametrize("options", [{"schedule": "parallel"}, {"staleness": 1}])
def test_an_old_D_gets_fewer_steps_on_G(options):
    config = replace(
        Config(), algorithm=AlgorithmConfig(**options), wireless=WirelessConfig(on=True)
    )
    small, large = (choose_by_size(config, (1, size, size)) for size in (16, 17))
    assert (small.training.generator_steps, large.training.generator_steps) == (3, 1)
    given = replace(config, training=TrainingConfig(generator_steps=5))
    assert choose_by_size(given, (1, 16, 16)).training.generator_steps == 5


@pytest.mark.parametrize("name", ["uagan", "ensemble"])
def test_mixtures_of_discriminators_get_a_loss_with_probabilities(name):
    config = replace(Config(), algorithm=AlgorithmConfig(name=name))
    chosen = choose_by_size(config, (1, 16, 16))
    assert chosen.training.loss == "nonsaturating"
    assert chosen.training.generator_lr == 3e-4


@pytest.mark.parametrize("name, norm", [("uagan", "none"), ("ensemble", "none"), ("ren", None)])
def test_mixtures_of_discriminators_get_no_batchnorm(name, norm):
    config = replace(Config(), algorithm=AlgorithmConfig(name=name))
    assert choose_by_size(config, (3, 32, 32)).model.discriminator_norm == norm
    given = replace(config, model=ModelConfig(discriminator_norm="batch"))
    assert choose_by_size(given, (3, 32, 32)).model.discriminator_norm == "batch"
    residual = replace(config, model=ModelConfig(architecture="resnet"))
    assert choose_by_size(residual, (3, 32, 32)).model.discriminator_norm is None


def test_a_value_that_has_not_been_chosen_is_a_bug():
    with pytest.raises(AssertionError, match="choose_by_size"):
        _ = Config().training.server_steps
    with pytest.raises(AssertionError, match="choose_by_size"):
        _ = Config().model.decay
