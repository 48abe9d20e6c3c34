"""Configurations that use third-party parts wrongly, with a part of the message.

parts.py is a copy of outsider.py.
"""

from __future__ import annotations

from fedgan_mpi.config.options import SEVERAL


def named(key: str, name: str, **options: object) -> dict[str, dict[str, object]]:
    """Return a configuration that names a part of parts.py, with its options."""
    section, _, word = key.partition(".")
    value: object = f"parts.py:{name}"
    if key in SEVERAL:
        value = ["frechet" if word == "metrics" else "flip", f"parts.py:{name}"]
    table = {
        "loss": "loss_options",
        "optimizer": "optimizer_options",
        "extractor": "extractor_options",
    }.get(word, "options")
    given: dict[str, object] = {word: value}
    if key in SEVERAL:
        options_of = "metric_options" if word == "metrics" else "augment_options"
        given[options_of] = {f"parts.py:{name}": options}
    elif options:
        given[table] = options
    return {section: given}


WRONG = {
    "no such file": (
        {"model": {"architecture": "none.py:build"}},
        "model.architecture is 'none.py:build', but there is no file",
    ),
    "no such module": (
        {"training": {"loss": "no_such_package.losses:mine"}},
        "training.loss is 'no_such_package.losses:mine', but there is no module no_such_package",
    ),
    "no such name": (
        named("model.architecture", "biuld"),
        "parts.py has no biuld; did you mean build?",
    ),
    "no such built-in": (
        {"aggregation": {"rule": "meen"}},
        "aggregation.rule is 'meen', but must be one of mean, median,",
    ),
    "unknown option": (
        named("model.architecture", "build", widht=3),
        "unknown key model.options.widht = 3; did you mean width?",
    ),
    "option of a wrong type": (
        named("model.architecture", "build", width="wide"),
        "model.options.width is 'wide', but must be int",
    ),
    "missing option": (
        named("algorithm.name", "Logs"),
        "algorithm.options.factor is missing, but parts.py:Logs needs it",
    ),
    "option of a built-in": (
        {"model": {"options": {"width": 3}}},
        "model.options is {'width': 3}, but must be left out for dcgan",
    ),
    "one network": (named("model.architecture", "build_one"), "but must return (G, D)"),
    "wrong shape": (
        named("model.architecture", "build_flat"),
        "G of two latent vectors has the shape (2, 3), but must have (2, 1, 16, 16)",
    ),
    "wrong range": (named("model.architecture", "build_wide"), "outside of [-1, 1]"),
    "no algorithm": (
        named("algorithm.name", "build"),
        "must be a subclass of Algorithm",
    ),
    "half an algorithm": (named("algorithm.name", "NoRound"), "NoRound does not define"),
    "no loss": (named("training.loss", "number"), "training.loss is 'parts.py:number'"),
    "no optimizer": (named("training.optimizer", "Odd"), "fedgan_mpi.nn.optimizers.Optimizer"),
    "no schedule": (
        {"training": {"optimizer": "parts.py:Stubborn", "warmup_rounds": 1}},
        "training.optimizer is 'parts.py:Stubborn', which follows no schedule; set",
    ),
    "wrong part of the rate": (
        named("training.optimizer", "Slower", part="much"),
        "training.optimizer_options.part is 'much', but must be float",
    ),
    "no augmentation": (
        named("training.augment", "Odd"),
        "subclass of fedgan_mpi.nn.augment.Augmentation",
    ),
    "wrong option of an augmentation": (
        named("training.augment", "Noise", sise=2),
        "unknown key training.augment_options.parts.py:Noise.sise = 2; did you mean size?",
    ),
    "images of another shape": (
        named("training.augment", "Halves"),
        "training.augment has 'parts.py:Halves', but it makes the shape (2, 1, 16, 8) of two "
        "images, not (2, 1, 16, 16)",
    ),
    "half a number": (
        named("training.augment", "Countless"),
        "training.augment has 'parts.py:Countless', whose numbers are 0.5, but must be a whole",
    ),
    "augmentation named twice": (
        {"training": {"augment": ["flip", "flip"]}},
        "training.augment is ['flip', 'flip'], but must be a list of different names",
    ),
    "target without augmentation": (
        {"training": {"augment_target": 0.6}},
        "training.augment_target is 0.6, but must be 0 when training.augment is empty",
    ),
    "no policy": (named("participation.policy", "Shares"), "participation.count is None"),
    "no rule": (
        named("aggregation.rule", "Odd"),
        "subclass of fedgan_mpi.algorithms.aggregation",
    ),
    "wrong vector": (
        named("aggregation.rule", "Scalar"),
        "aggregation.rule is 'parts.py:Scalar', but it makes the shape ()",
    ),
    "no server optimizer": (
        named("aggregation.server_optimizer", "Odd"),
        "subclass of fedgan_mpi.algorithms.aggregation.server_optimizer.ServerOptimizer",
    ),
    "wrong option of a server optimizer": (
        {"aggregation": {"server_optimizer": "adam", "server_options": {"tua": 1.0}}},
        "unknown key aggregation.server_options.tua = 1.0; did you mean tau?",
    ),
    "no compressor": (
        named("aggregation.compression", "Odd"),
        "subclass of fedgan_mpi.algorithms.aggregation.compressors.Compressor",
    ),
    "no detector": (
        named("aggregation.detector", "Odd"),
        "subclass of fedgan_mpi.algorithms.aggregation.detectors.Detector",
    ),
    "wrong option of a detector": (
        {"aggregation": {"detector": "loss_outliers", "detector_options": {"decay": 0.0}}},
        "aggregation.detector_options.decay is 0.0, but must be above 0 and at most 1",
    ),
    "patch larger than an image": (
        {"attack": {"devices": [2], "kind": "backdoor", "patch": 17}},
        "attack.patch is 17, but must be at most 16, the smaller side of the images",
    ),
    "attackers that do not exist": (
        {"attack": {"devices": [2, 4]}},
        "attack.devices is [2, 4], but must be from 1 to 3, the number of devices",
    ),
    "no extractor": (named("evaluation.extractor", "number"), "evaluation.extractor is"),
    "features of a wrong shape": (
        named("evaluation.extractor", "whole_images"),
        "gives the shape (2, 1, 16, 16) for two images, but must give (2, features)",
    ),
    "no metric": (
        named("evaluation.metrics", "Odd"),
        "subclass of fedgan_mpi.evaluation.metrics",
    ),
    "wrong option of a metric": (
        named("evaluation.metrics", "MeanGap", scael=2),
        "unknown key evaluation.metric_options.parts.py:MeanGap.scael = 2; did you mean scale?",
    ),
}

UNUSABLE = {
    "nobody takes part": (
        {"participation": {"policy": "parts.py:Nobody", "count": 2}},
        "participation.policy is 'parts.py:Nobody', which chose the devices []",
    ),
    "a score is text": (
        named("evaluation.metrics", "Text"),
        "evaluation.metrics has 'parts.py:Text', whose text is 'much', but must be a finite number",
    ),
}
