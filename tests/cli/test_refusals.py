"""Refusals of flags and TOML files: one sentence with key, value and valid values."""

from __future__ import annotations

import pytest
from refusals import check_refusal

WRONG_FLAGS = {
    "unknown flag": (["--training.rouns", "3"], "--training.rouns; did you mean training.rounds"),
    "wrong type": (["--training.rounds", "many"], "training.rounds is many, but must be int"),
    "text for a list": (["--training.betas", "0.5,0.9"], "must be a list, such as [0.5, 0.9]"),
    "huge batch": (
        ["--training.batch_size", "9999999999"],
        "training.batch_size is 9999999999, but must be from 1 to 2^31 - 1",
    ),
    "fraction for an integer": (
        ["--training.rounds", "2.5"],
        "training.rounds is 2.5, but must be int",
    ),
    "too few rounds": (["--training.rounds", "0"], "training.rounds is 0, but must be at least 1"),
    "negative steps": (["--training.discriminator_steps", "-1"], "discriminator_steps is -1"),
    "unknown choice": (["--training.loss", "x"], "training.loss is 'x', but must be one of nonsat"),
    "unknown size": (
        ["--model.size", "7"],
        "model.size is 7, but must be from 8 to 2^16 - 1",
    ),
    "NaN rate": (["--training.generator_lr", "nan"], "generator_lr is nan, but must be"),
    "infinite rate": (["--training.generator_lr", "inf"], "generator_lr is inf, but must be"),
    "beta of 1": (["--training.betas", "[0.5, 1.0]"], "training.betas is"),
    "one beta": (["--training.betas", "0.5"], "training.betas is 0.5"),
    "negative seed": (["--run.seed", "-1"], "run.seed is -1"),
    "name with a slash": (["--run.name", "a/b"], "run.name is 'a/b'"),
    "count for all": (["--participation.count", "2"], "participation.count is 2, but must be left"),
    "no count": (["--participation.policy", "random"], "participation.count is None"),
    "float64 wire with float32": (["--link.wire_dtype", "float64"], "link.wire_dtype is 'float64'"),
    "float32 wire with float64": (
        ["--training.precision", "float64"],
        "link.wire_dtype is 'float32', but must be 'float64' when training.precision is 'float64'",
    ),
    "bfloat16 wire with float64": (
        ["--training.precision", "float64", "--link.wire_dtype", "bfloat16"],
        "link.wire_dtype is 'bfloat16', but must be 'float64' when training.precision is 'float64'",
    ),
    "float16 for gradients": (
        ["--algorithm.name", "mdgan", "--link.wire_dtype", "float16"],
        "link.wire_dtype is 'float16', but must be 'bfloat16' or 'float32' for mdgan's gradients",
    ),
    "float16 for moments": (
        ["--algorithm.moments", "averaged", "--link.wire_dtype", "float16"],
        "link.wire_dtype is 'float16', but must be 'bfloat16' or 'float32' for averaged moments",
    ),
    "float16 for private updates": (
        ["--algorithm.name", "dp_fedavg_gan", "--link.wire_dtype", "float16"],
        "link.wire_dtype is 'float16', but must be 'bfloat16' or 'float32' for clipped updates",
    ),
    "error feedback with float32": (
        ["--link.error_feedback", "true"],
        "link.wire_dtype is 'float32', but must be 'bfloat16' or 'float16' when link.error_feed",
    ),
    **{
        f"error feedback for {name}": (
            [
                f"--algorithm.name={name}",
                "--link.wire_dtype=bfloat16",
                "--link.error_feedback=true",
            ],
            f"link.error_feedback is True, but must be left out for {name}",
        )
        for name in ("mdgan", "uagan", "ensemble", "dp_fedavg_gan", "centralized")
    },
    "autocast with float64": (
        [
            "--training.precision=float64",
            "--link.wire_dtype=float64",
            "--training.autocast=bfloat16",
        ],
        "training.autocast is 'bfloat16', but must be 'off' when training.precision is 'float64'",
    ),
    "CUDA graphs on a CPU": (
        ["--training.graphs", "on", "--training.device", "cpu"],
        "training.device is 'cpu', but must be 'auto' or 'cuda' when training.graphs is 'on'",
    ),
    "CUDA route on a CPU": (
        ["--link.route", "cuda", "--training.device", "cpu"],
        "training.device is 'cpu', but must be 'auto' or 'cuda' when link.route is 'cuda'",
    ),
    "NCCL on a CPU": (
        ["--link.route", "nccl", "--training.device", "cpu"],
        "training.device is 'cpu', but must be 'auto' or 'cuda' when link.route is 'nccl'",
    ),
    "NCCL and dying ranks": (
        ["--link.route", "nccl", "--link.survive", "true"],
        "link.route is 'nccl', but must be 'auto', 'host' or 'cuda' when link.survive is true",
    ),
    "participation for centralized": (
        [
            "--algorithm.name=centralized",
            "--participation.policy=random",
            "--participation.count=2",
        ],
        "participation.policy is 'random', but must be 'all' for centralized",
    ),
    "schedule of another algorithm": (
        ["--algorithm.name", "fedgan", "--algorithm.schedule", "parallel"],
        "algorithm.schedule is 'parallel', but must be left out for fedgan; it belongs to ren",
    ),
    "preset of another algorithm": (
        ["--algorithm.name", "fedgan", "--algorithm.preset", "ifl"],
        "algorithm.preset is 'ifl', but must be 'fl_gan' or left out for fedgan",
    ),
    "server steps for mdgan": (
        ["--algorithm.name", "mdgan", "--training.generator_steps", "3"],
        "training.generator_steps is 3, but must be left out for mdgan",
    ),
    "odds without probabilities": (
        ["--algorithm.name", "uagan", "--training.loss", "hinge"],
        "algorithm.mode is 'odds', but must be 'mean' or 'max' when training.loss is 'hinge'",
    ),
    "softmax without probabilities": (
        ["--algorithm.name=uagan", "--algorithm.mode=softmax", "--training.loss=lsgan"],
        "algorithm.mode is 'softmax', but must be 'mean' or 'max'",
    ),
    "gradient penalty with BatchNorm": (
        ["--training.loss", "wgan-gp", "--model.size", "32"],
        "model.discriminator_norm is None, but must be 'none' for wgan-gp",
    ),
    "gradient penalty with BatchNorm of the user's": (
        ["--training.loss", "wgan-gp", "--model.discriminator_norm", "batch"],
        "model.discriminator_norm is 'batch', but must be 'none' for wgan-gp",
    ),
    "averaged moments for mdgan": (
        ["--algorithm.name", "mdgan", "--algorithm.moments", "averaged"],
        "algorithm.moments is 'averaged', but must be 'persistent' or 'reset' for mdgan",
    ),
    "shares with fl_gan": (
        ["--algorithm.name=fedgan", "--algorithm.preset=fl_gan", "--algorithm.shares=data"],
        "algorithm.shares is 'data', but must be 'uniform' or left out for fl_gan",
    ),
    "steps with fl_gan": (
        [
            "--algorithm.name=fedgan",
            "--algorithm.preset=fl_gan",
            "--training.discriminator_steps=5",
        ],
        "training.discriminator_steps is 5, but must be left out for fl_gan",
    ),
    "epochs without fl_gan": (
        ["--algorithm.name", "fedgan", "--algorithm.epochs", "2"],
        "algorithm.epochs is 2, but must be left out for fedgan without",
    ),
    "noise without a clip": (
        ["--algorithm.name=dp_fedavg_gan", "--algorithm.clip=0"],
        "algorithm.clip is 0.0, but must be above 0 if algorithm.noise is",
    ),
    "averaged BatchNorm for dp_fedavg_gan": (
        ["--algorithm.name=dp_fedavg_gan", "--algorithm.batchnorm=average"],
        "algorithm.batchnorm is 'average', but must be 'local' for dp_fedavg_gan",
    ),
    "delta of 1": (
        ["--algorithm.name=dp_fedavg_gan", "--algorithm.delta=1"],
        "algorithm.delta is 1.0, but must be between 0 and 1",
    ),
    "negative staleness": (
        ["--algorithm.staleness=-1"],
        "algorithm.staleness is -1, but must be at least 0",
    ),
    "staleness without a cell": (
        ["--algorithm.staleness=2"],
        "algorithm.staleness is 2, but must be 0 unless wireless.on is true: the cell decides",
    ),
    **{
        f"staleness with {flag}": (
            ["--algorithm.staleness=2", "--wireless.on=true", f"--{flag}", *more],
            f"algorithm.staleness is 2, but must be 0 {right}",
        )
        for flag, right, *more in (
            ("wireless.compute=measured", "when wireless.compute is 'measured'"),
            ("wireless.multiplexing=tdma", "when wireless.multiplexing is 'tdma'"),
            (
                "participation.policy=importance",
                "when participation.policy is 'importance'",
                "--participation.count=2",
            ),
            ("algorithm.moments=averaged", "when algorithm.moments is 'averaged'"),
            ("algorithm.batchnorm=recalibrate", "when algorithm.batchnorm is 'recalibrate'"),
            (
                "algorithm.control_variates=true",
                "when algorithm.control_variates is True",
                "--training.optimizer=sgd",
            ),
            ("link.survive=true", "when link.survive is True"),
            ("aggregation.rule=median", "unless aggregation.rule is 'mean'"),
            ("aggregation.compression=top_k", "unless aggregation.compression is 'none'"),
        )
    },
    "staleness for fedgan": (
        ["--algorithm.name=fedgan", "--algorithm.staleness=1"],
        "algorithm.staleness is 1, but must be left out for fedgan; it belongs to ren",
    ),
    "negative smoothing": (
        ["--algorithm.name=fess_gda", "--algorithm.smoothing=-1"],
        "algorithm.smoothing is -1.0, but must be at least 0 and finite",
    ),
    "smoothing rate of 0": (
        ["--algorithm.name=fess_gda", "--algorithm.smoothing_rate=0"],
        "algorithm.smoothing_rate is 0.0, but must be above 0 and at most 1",
    ),
    "smoothing rate without smoothing": (
        ["--algorithm.name=fess_gda", "--algorithm.smoothing=0", "--algorithm.smoothing_rate=0.5"],
        "algorithm.smoothing_rate is 0.5, but must be left out when algorithm.smoothing is 0",
    ),
    "smoothing for fedgan": (
        ["--algorithm.name=fedgan", "--algorithm.smoothing=2"],
        "algorithm.smoothing is 2.0, but must be left out for fedgan; it belongs to fess_gda",
    ),
    "alternating fess_gda": (
        ["--algorithm.name=fess_gda", "--algorithm.local_update=alternating"],
        "algorithm.local_update is 'alternating', but must be left out for fess_gda",
    ),
    "sharpness without softmax": (
        ["--algorithm.name=uagan", "--algorithm.sharpness=2"],
        "algorithm.sharpness is 2.0, but must be left out unless algorithm.mode is 'softmax'",
    ),
    "discriminator norm for sngan": (
        ["--model.architecture=sngan", "--model.discriminator_norm=batch"],
        "model.discriminator_norm is 'batch', but must be left out for sngan",
    ),
    "negative label": (["sample", "runs/a", "--label", "-1"], "--label is -1"),
    "two files": (["a.toml", "b.toml"], "b.toml"),
    "no value": (["--training.rounds"], "--training.rounds: expected one argument"),
    "file and resume": (["a.toml", "--resume", "runs/a"], "both name an experiment"),
    "missing file": (["none.toml"], "none.toml cannot be read: No such file"),
    "sample of 0 images": (["sample", "runs/a", "--count", "0"], "--count is 0"),
    "resume of a missing run": (["--resume", "nowhere"], "nowhere/config.toml cannot be read"),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_FLAGS.values(), ids=WRONG_FLAGS.keys())
def test_wrong_flags(arguments, sentence):
    check_refusal(arguments, sentence)


WRONG_FILES = {
    "unknown key": ("[training]\nround = 5", "unknown key training.round; did you mean training.r"),
    "unknown section": ("[trainin]\nrounds = 5", "unknown key trainin.rounds; did you mean"),
    "key without section": ("rounds = 5", "unknown key rounds"),
    "section that is a number": ("training = 5", "unknown key training"),
    "string for a number": ('[training]\nrounds = "5"', "training.rounds is '5', but must be int"),
    "fraction": ("[training]\nrounds = 5.5", "training.rounds is 5.5, but must be int"),
    "boolean for a number": ("[training]\nrounds = true", "training.rounds is True"),
    "number out of range": ("[training]\nrounds = -5", "training.rounds is -5"),
    "three betas": ("[training]\nbetas = [0.1, 0.2, 0.3]", "training.betas"),
    "not toml": ("[training\n", "is not valid TOML"),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_wrong_files(tmp_path, text, sentence):
    file = tmp_path / "run.toml"
    file.write_text(text)
    message = check_refusal([str(file)], sentence)
    if "training.rounds is -5" not in sentence:  # checked after flags are applied
        assert str(file) in message
