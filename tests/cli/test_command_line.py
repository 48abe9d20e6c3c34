"""Flags and TOML files: what is taken, and how a mistake is told."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest

from fedgan_mpi.cli.commands import Sample, parse
from fedgan_mpi.cli.parser import Train, config_table, read_config
from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError


def train(*arguments: str) -> Config:
    command = parse(list(arguments))
    assert isinstance(command, Train)
    return command.config


def test_nothing_means_the_default_experiment():
    assert train() == Config() == train("train")


def test_flags_override_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        "[training]\nrounds = 5\nbetas = [0.1, 0.9]\n"
        '[participation]\npolicy = "random"\ncount = 3\n'
    )
    config = train("train", str(file), "--training.rounds", "7", "--run.name=a")
    assert (config.training.rounds, config.training.betas) == (7, (0.1, 0.9))
    assert (config.participation.policy, config.participation.count) == ("random", 3)
    assert config.run.name == "a"
    untouched = dataclasses.replace(config.training, rounds=600, betas=(0.5, 0.999))
    assert untouched == Config().training


def test_a_resolved_configuration_reads_back(tmp_path):
    import tomli_w

    config = train("--training.rounds", "3", "--model.nz", "5", "--link.average", "gather")
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps({**config_table(config), "provenance": {"host": "here"}}))
    assert read_config(path) == config


def test_a_section_without_keys_says_nothing(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[training]\n# rounds = 3\n[model]\nnz = 5\n")
    assert train(str(file)) == train("--model.nz", "5")
    file.write_text("[trainning]\n")
    with pytest.raises(UserError, match="unknown key trainning"):
        parse([str(file)])


def test_provenance_keeps_that_of_earlier_jobs(tmp_path):
    from fedgan_mpi.cli.parser import read_provenance
    from fedgan_mpi.run.directory import write_config

    for ranks in (3, 4, 5):
        write_config(tmp_path, train("--model.nz", "5"), {"ranks": ranks})
    assert read_config(tmp_path / "config.toml").model.nz == 5
    now = read_provenance(tmp_path)
    assert now["ranks"] == 5 and [then["ranks"] for then in now["earlier"]] == [3, 4]
    assert not any("earlier" in then for then in now["earlier"])


def test_a_program_inside_anothers_clone_is_no_part_of_it(tmp_path, monkeypatch):
    from fedgan_mpi.run import directory as record

    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "record.py").write_text("")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    (tmp_path / "theirs").write_text("")
    subprocess.run([*git, "add", "theirs"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "theirs"], cwd=tmp_path, check=True)
    assert record._git_state() == "none"
    subprocess.run([*git, "add", "record.py"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "ours"], cwd=tmp_path, check=True)
    assert len(record._git_state()) == 12


def test_sample():
    command = parse(["sample", "runs/a", "--count", "5"])
    assert isinstance(command, Sample)
    assert (str(command.run), command.count, str(command.out)) == ("runs/a", 5, "samples.png")


WRONG_FLAGS = {
    "unknown flag": (["--training.rouns", "3"], "--training.rouns; did you mean training.rounds"),
    "wrong type": (["--training.rounds", "many"], "training.rounds is many, but must be int"),
    "no list": (["--training.betas", "0.5,0.9"], "must be a list, such as [0.5, 0.9]"),
    "a batch that no machine holds": (
        ["--training.batch_size", "9999999999"],
        "training.batch_size is 9999999999, but must be from 1 to 2^31 - 1",
    ),
    "not whole": (["--training.rounds", "2.5"], "training.rounds is 2.5, but must be int"),
    "too few rounds": (["--training.rounds", "0"], "training.rounds is 0, but must be at least 1"),
    "negative steps": (["--training.discriminator_steps", "-1"], "discriminator_steps is -1"),
    "no such choice": (["--training.loss", "x"], "training.loss is x, but must be one of 'nonsat"),
    "no such size": (
        ["--model.size", "17"],
        "model.size is 17, but must be one of 16, 32, 64, 128",
    ),
    "rate of nan": (["--training.generator_lr", "nan"], "generator_lr is nan, but must be"),
    "rate of inf": (["--training.generator_lr", "inf"], "generator_lr is inf, but must be"),
    "beta of one": (["--training.betas", "[0.5, 1.0]"], "training.betas is"),
    "one beta": (["--training.betas", "0.5"], "training.betas is 0.5"),
    "seed below zero": (["--run.seed", "-1"], "run.seed is -1"),
    "name with a slash": (["--run.name", "a/b"], "run.name is 'a/b'"),
    "count of all": (["--participation.count", "2"], "participation.count is 2, but must be left"),
    "no count": (["--participation.policy", "random"], "participation.count is None"),
    "wire of another type": (["--link.wire_dtype", "float64"], "link.wire_dtype is 'float64'"),
    "wire of float32 beside float64": (
        ["--training.precision", "float64"],
        "link.wire_dtype is 'float32', but must be 'float64' as training.precision is",
    ),
    "narrow wire beside float64": (
        ["--training.precision", "float64", "--link.wire_dtype", "bfloat16"],
        "link.wire_dtype is 'bfloat16', but must be 'float64' as training.precision is",
    ),
    "float16 for gradients": (
        ["--algorithm.name", "mdgan", "--link.wire_dtype", "float16"],
        "link.wire_dtype is 'float16', but must be 'bfloat16' or 'float32' for mdgan's gradients",
    ),
    "float16 for squares": (
        ["--algorithm.moments", "averaged", "--link.wire_dtype", "float16"],
        "link.wire_dtype is 'float16', but must be 'bfloat16' or 'float32' for averaged moments",
    ),
    "float16 for private updates": (
        ["--algorithm.name", "dp_fedavg_gan", "--link.wire_dtype", "float16"],
        "link.wire_dtype is 'float16', but must be 'bfloat16' or 'float32' for clipped updates",
    ),
    "feedback without loss": (
        ["--link.error_feedback", "true"],
        "link.wire_dtype is 'float32', but must be 'bfloat16' or 'float16' when link.error_feed",
    ),
    **{
        f"feedback of {name}": (
            [
                f"--algorithm.name={name}",
                "--link.wire_dtype=bfloat16",
                "--link.error_feedback=true",
            ],
            f"link.error_feedback is True, but must be left out for {name}",
        )
        for name in ("mdgan", "uagan", "dp_fedavg_gan", "centralized")
    },
    "bfloat16 inside float64": (
        [
            "--training.precision=float64",
            "--link.wire_dtype=float64",
            "--training.autocast=bfloat16",
        ],
        "training.autocast is 'bfloat16', but must be 'off' when training.precision is 'float64'",
    ),
    "graphs of a cpu": (
        ["--training.graphs", "on", "--training.device", "cpu"],
        "training.device is 'cpu', but must be 'auto' or 'cuda' when training.graphs is 'on'",
    ),
    "cuda route on a cpu": (
        ["--link.route", "cuda", "--training.device", "cpu"],
        "training.device is 'cpu', but must be 'auto' or 'cuda'",
    ),
    "few of one process": (
        [
            "--algorithm.name=centralized",
            "--participation.policy=random",
            "--participation.count=2",
        ],
        "participation.policy is 'random', but must be 'all' for centralized",
    ),
    "schedule of another": (
        ["--algorithm.name", "fedgan", "--algorithm.schedule", "parallel"],
        "algorithm.schedule is 'parallel', but must be left out for fedgan; it belongs to ren",
    ),
    "preset of another": (
        ["--algorithm.name", "fedgan", "--algorithm.preset", "ifl"],
        "algorithm.preset is 'ifl', but must be 'fl_gan' or left out for fedgan",
    ),
    "server steps without them": (
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
    "penalty and batchnorm": (
        ["--training.loss", "wgan-gp"],
        "model.discriminator_norm is None, but must be 'none' for wgan-gp",
    ),
    "averaged moments of own discriminators": (
        ["--algorithm.name", "mdgan", "--algorithm.moments", "averaged"],
        "algorithm.moments is 'averaged', but must be 'persistent' or 'reset' for mdgan",
    ),
    "shares of a plain average": (
        ["--algorithm.name=fedgan", "--algorithm.preset=fl_gan", "--algorithm.shares=data"],
        "algorithm.shares is 'data', but must be 'uniform' or left out for fl_gan",
    ),
    "steps beside epochs": (
        [
            "--algorithm.name=fedgan",
            "--algorithm.preset=fl_gan",
            "--training.discriminator_steps=5",
        ],
        "training.discriminator_steps is 5, but must be left out for fl_gan",
    ),
    "epochs without a preset": (
        ["--algorithm.name", "fedgan", "--algorithm.epochs", "2"],
        "algorithm.epochs is 2, but must be left out for fedgan without",
    ),
    "noise without a clip": (
        ["--algorithm.name=dp_fedavg_gan", "--algorithm.clip=0"],
        "algorithm.clip is 0.0, but must be above 0 when algorithm.noise is",
    ),
    "statistics without noise": (
        ["--algorithm.name=dp_fedavg_gan", "--algorithm.batchnorm=average"],
        "algorithm.batchnorm is 'average', but must be 'local' for dp_fedavg_gan",
    ),
    "delta of one": (
        ["--algorithm.name=dp_fedavg_gan", "--algorithm.delta=1"],
        "algorithm.delta is 1.0, but must be between 0 and 1",
    ),
    "sharpness without softmax": (
        ["--algorithm.name=uagan", "--algorithm.sharpness=2"],
        "algorithm.sharpness is 2.0, but must be left out unless algorithm.mode is 'softmax'",
    ),
    "norm of the residual pair": (
        ["--model.architecture=sngan", "--model.discriminator_norm=batch"],
        "model.discriminator_norm is 'batch', but must be left out for sngan",
    ),
    "label below zero": (["sample", "runs/a", "--label", "-1"], "--label is -1"),
    "two files": (["a.toml", "b.toml"], "b.toml"),
    "no value": (["--training.rounds"], "--training.rounds: expected one argument"),
    "file and resume": (["a.toml", "--resume", "runs/a"], "both name an experiment"),
    "no such file": (["none.toml"], "none.toml cannot be read: No such file"),
    "sample of nothing": (["sample", "runs/a", "--count", "0"], "--count is 0"),
    "resume of nothing": (["--resume", "nowhere"], "nowhere/config.toml cannot be read"),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_FLAGS.values(), ids=WRONG_FLAGS.keys())
def test_wrong_flags_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError) as error:
        parse(arguments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


WRONG_FILES = {
    "unknown key": ("[training]\nround = 5", "unknown key training.round; did you mean training.r"),
    "unknown section": ("[trainin]\nrounds = 5", "unknown key trainin.rounds; did you mean"),
    "key without section": ("rounds = 5", "unknown key rounds"),
    "section that is a number": ("training = 5", "unknown key training"),
    "string for a number": ('[training]\nrounds = "5"', "training.rounds is '5', but must be int"),
    "fraction": ("[training]\nrounds = 5.5", "training.rounds is 5.5, but must be int"),
    "truth for a number": ("[training]\nrounds = true", "training.rounds is True"),
    "number out of range": ("[training]\nrounds = -5", "training.rounds is -5"),
    "three betas": ("[training]\nbetas = [0.1, 0.2, 0.3]", "training.betas"),
    "not toml": ("[training\n", "is not valid TOML"),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_wrong_files_are_one_sentence_with_the_file(tmp_path, text, sentence):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parse([str(file)])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    if "training.rounds is -5" not in sentence:
        assert str(file) in str(error.value)


def test_a_resumed_run_is_the_same_experiment_or_a_longer_one(tmp_path):
    import tomli_w

    (tmp_path / "config.toml").write_text(
        tomli_w.dumps(config_table(train("--training.rounds", "9")))
    )
    resume = ["--resume", str(tmp_path)]
    assert train(*resume).training.rounds == 9
    assert train(*resume, "--training.rounds", "12").training.rounds == 12
    with pytest.raises(UserError, match=r"training\.rounds is 4, but must be at least 9 as in"):
        parse([*resume, "--training.rounds", "4"])
    with pytest.raises(UserError, match=r"model\.nz is 7, but must be 100 as in"):
        parse([*resume, "--model.nz", "7"])
    with pytest.raises(UserError, match=r"participation\.count is 3, but must be left out"):
        parse([*resume, "--participation.policy=random", "--participation.count=3"])
    # What results do not depend on may change.
    assert train(*resume, "--checkpoint.every", "7").checkpoint.every == 7


def test_every_key_has_help_with_type_and_default():
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit) as leave:
        parse(["--help"])
    assert leave.value.code == 0
    help_text = " ".join(text.getvalue().split())
    for section in dataclasses.fields(Config):
        for key in dataclasses.fields(getattr(Config(), section.name)):
            flag = f" --{section.name}.{key.name} "
            after = help_text.split("commands:")[0].split(flag)[-1]
            after = re.split(r" --\w+\.\w+ ", after)[0]  # up to the next key
            assert "default: " in after and len(after) > 30, flag


def test_every_algorithm_has_a_method_and_a_file():
    from typing import get_args, get_type_hints

    from fedgan_mpi.algorithms import ALGORITHMS
    from fedgan_mpi.config import AlgorithmConfig
    from fedgan_mpi.config.algorithm_traits import KNOWN_BY, TRAITS

    names = list(get_args(get_type_hints(AlgorithmConfig)["name"]))
    assert names == list(TRAITS) == list(ALGORITHMS)
    keys = {key.name for key in dataclasses.fields(AlgorithmConfig)}
    assert set(KNOWN_BY) == keys - {"name", "moments"}


def test_help_needs_neither_mpi_nor_torch():
    """Nor does parsing: mistakes are told before anything slow is imported."""
    code = (
        "import sys; sys.modules['mpi4py'] = None; sys.modules['torch'] = None\n"
        "from fedgan_mpi.__main__ import main\nmain(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--training.rounds" in done.stdout
