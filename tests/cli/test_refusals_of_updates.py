"""Refusals of flags for updates on their way: compression, rules, detectors, attacks, privacy."""

from __future__ import annotations

import pytest
from refusals import check_refusal

SCAFFOLD = ("--algorithm.control_variates=true", "--training.optimizer=sgd")
WRONG_FLAGS = {
    "compressed gradients": (
        ["--algorithm.name=mdgan", "--aggregation.compression=top_k"],
        "aggregation.compression is 'top_k', but must be 'none' for mdgan, whose devices send no n",
    ),
    "compressed private updates": (
        ["--algorithm.name=dp_fedavg_gan", "--aggregation.compression=qsgd"],
        "aggregation.compression is 'qsgd', but must be 'none' for dp_fedavg_gan, because ε assum",
    ),
    "compression with shares by progress": (
        ["--algorithm.name=fegan", "--algorithm.preset=ifl", "--aggregation.compression=qsgd"],
        "aggregation.compression is 'qsgd', but must be 'none' for the preset ifl",
    ),
    "compression of 16-bit messages": (
        ["--link.wire_dtype=bfloat16", "--aggregation.compression=top_k"],
        "aggregation.compression is 'top_k', but must be 'none' when link.wire_dtype is 'bfloat16'",
    ),
    "control variates with Adam": (
        ["--algorithm.control_variates=true"],
        "training.optimizer is 'adam', but must be 'sgd' when algorithm.control_variates is True",
    ),
    "control variates with a robust rule": (
        [*SCAFFOLD, "--aggregation.rule=median"],
        "aggregation.rule is 'median', but must be 'mean' when algorithm.control_variates is True",
    ),
    "control variates with compression": (
        [*SCAFFOLD, "--aggregation.compression=qsgd"],
        "aggregation.compression is 'qsgd', but must be 'none' when algorithm.control_variates",
    ),
    "control variates on a 16-bit wire": (
        [*SCAFFOLD, "--link.wire_dtype=bfloat16"],
        "link.wire_dtype is 'bfloat16', but must be 'float32' or 'float64' when algorithm.control_",
    ),
    "control variates with skipped devices": (
        [*SCAFFOLD, "--training.non_finite=skip"],
        "training.non_finite is 'skip', but must be 'stop' when algorithm.control_variates is True",
    ),
    "control variates with importance": (
        [*SCAFFOLD, "--participation.policy=importance", "--participation.count=2"],
        "participation.policy is 'importance', but must be another policy when algorithm.control_v",
    ),
    "control variates of private updates": (
        [*SCAFFOLD, "--algorithm.name=dp_fedavg_gan"],
        "algorithm.control_variates is True, but must be left out for dp_fedavg_gan; it belongs to",
    ),
    "detector with a rule without shares": (
        ["--aggregation.detector=loss_outliers", "--aggregation.rule=median"],
        "aggregation.detector is 'loss_outliers', but must be 'none' when aggregation.rule is 'med",
    ),
    "detector of private updates": (
        ["--aggregation.detector=loss_outliers", "--algorithm.name=dp_fedavg_gan"],
        "aggregation.detector is 'loss_outliers', but must be 'none' for dp_fedavg_gan, because ε",
    ),
    "detector with importance": (
        [
            "--aggregation.detector=loss_outliers",
            "--participation.policy=importance",
            "--participation.count=2",
        ],
        "must be 'none' when participation.policy is 'importance', which has its own weights",
    ),
    "opaque backdoor": (
        ["--attack.kind=backdoor", "--attack.strength=2"],
        "attack.strength is 2.0, but must be at most 1 when attack.kind is 'backdoor'",
    ),
    "strength of a free rider": (
        ["--attack.devices=[1]", "--attack.kind=stale", "--attack.strength=2"],
        "attack.strength is 2.0, but must be left out when attack.kind is 'stale'",
    ),
    "attack without attackers": (
        ["--attack.kind=noise"],
        "attack.kind is 'noise', but must be left out when attack.devices is empty",
    ),
    "attack after the end": (
        ["--attack.devices=[1]", "--attack.from_round=11", "--training.rounds=10"],
        "attack.from_round is 11, but must be at most training.rounds",
    ),
    "rule for a private algorithm": (
        ["--algorithm.name=dp_fedavg_gan", "--aggregation.rule=median"],
        "aggregation.rule is 'median', but must be 'mean' for dp_fedavg_gan, because ε assumes",
    ),
    "adaptive augmentation for a private algorithm": (
        [
            "--algorithm.name=dp_fedavg_gan",
            '--training.augment=["flip"]',
            "--training.augment_target=0.5",
        ],
        "training.augment_target is 0.5, but must be 0 for dp_fedavg_gan, which does not protect",
    ),
    "micro-batches with lecam": (
        ["--training.accumulate=2", "--training.regularizer=lecam"],
        "training.accumulate is 2, but must be 1 when training.regularizer is 'lecam'",
    ),
    "patch of another attack": (
        ["--attack.patch=2"],
        "attack.patch is 2, but must be left out unless attack.kind is 'backdoor'",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_FLAGS.values(), ids=WRONG_FLAGS.keys())
def test_wrong_flags(arguments, sentence):
    check_refusal(arguments, sentence)
