"""Default values that depend on the size of the images.

They were found by experiment: docs/results/algorithms.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedgan_mpi.config.experiment import Config

SMALL = 16
"""Images are small up to this height or width, pixels; the lesser of both counts."""
MAX_STEPS_WITH_OLD_D = 3
"""Steps on G per round at most, if D is one round old or older: six steps diverged."""
_SMALL_IMAGES: dict[str, dict[str, Any]] = {
    "training": {
        "generator_steps": 6,
        "generator_batch_size": 32,
        "generator_lr": 3e-4,
        "discriminator_lr": 3e-4,
        "loss": "hinge",
    },
    "model": {"ema": 0.998},
}
_LARGE_IMAGES: dict[str, dict[str, Any]] = {
    "training": {
        "generator_steps": 1,
        "generator_batch_size": 64,
        "generator_lr": 5e-4,
        "discriminator_lr": 5e-4,
        "loss": "nonsaturating",
    },
    "model": {"ema": 0.99},
}
_TRAINING_KEYS = (*_SMALL_IMAGES["training"],)
_MODEL_KEYS = ("ema", "discriminator_norm")


def choose_by_size(config: Config, image_shape: tuple[int, int, int]) -> Config:
    """Return the configuration with a value for each option whose default depends on the images.

    image_shape: channels, height, width. Options that have a value keep it.
    """
    return _fill_sections(config, **defaults_by_size(config, image_shape))


def defaults_by_size(
    config: Config, image_shape: tuple[int, int, int]
) -> dict[str, dict[str, Any]]:
    """Return section -> key -> default of each such option.

    config: gives the algorithm and the architecture. image_shape: channels, height, width.
    """
    chosen = _SMALL_IMAGES if min(image_shape[1:]) <= SMALL else _LARGE_IMAGES
    traits = config.algorithm.traits
    training, model = dict(chosen["training"]), dict(chosen["model"])
    if traits.sets_generator_steps:
        del training["generator_steps"]
    elif config.algorithm.schedule == "parallel" or config.algorithm.staleness > 0:
        training["generator_steps"] = min(training["generator_steps"], MAX_STEPS_WITH_OLD_D)
    if traits.mixes_discriminators:
        # A mixture needs probabilities, and asks each D in evaluation mode. There, a D with
        # BatchNorm judges otherwise than in its training, and G learns to use the difference.
        training["loss"] = "nonsaturating"
        if config.model.architecture == "dcgan":
            model["discriminator_norm"] = "none"
    return {"training": training, "model": model}


def choose_as_before(config: Config, before: Config) -> Config:
    """Return the configuration with a run's value for each such option that is left out.

    before: of the run that is resumed, in which `choose_by_size` has replaced None.
    """
    training = {key: getattr(before.training, key) for key in _TRAINING_KEYS}
    model = {key: getattr(before.model, key) for key in _MODEL_KEYS}
    return _fill_sections(config, training, model)


def _fill_sections(config: Config, training: dict[str, Any], model: dict[str, Any]) -> Config:
    sections = {}
    for name, values in (("training", training), ("model", model)):
        section: Any = getattr(config, name)
        left_out = {k: v for k, v in values.items() if getattr(section, k) is None}
        if left_out:
            sections[name] = replace(section, **left_out)
    return replace(config, **sections) if sections else config
