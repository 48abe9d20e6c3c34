"""Parsing of commands and flags, and the help of every option."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest

from fedgan_mpi import plugins
from fedgan_mpi.algorithms.registry import ALGORITHMS
from fedgan_mpi.cli.commands import parse
from fedgan_mpi.cli.local_commands import Sample
from fedgan_mpi.cli.parser import Train
from fedgan_mpi.config import AlgorithmConfig, Config
from fedgan_mpi.config.algorithm_traits import KNOWN_BY, TRAITS


def train(*arguments: str) -> Config:
    command = parse(list(arguments))
    assert isinstance(command, Train)
    return command.config


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse([*arguments, "--help"])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_no_arguments_mean_the_default_experiment():
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
    unchanged = dataclasses.replace(config.training, rounds=600, betas=(0.5, 0.999))
    assert unchanged == Config().training


def test_sample():
    command = parse(["sample", "runs/a", "--count", "5"])
    assert isinstance(command, Sample)
    assert (str(command.run), command.count, str(command.out)) == ("runs/a", 5, "samples.png")


def test_the_former_name_of_memorization_is_accepted_but_not_listed(capsys):
    flags = ["runs/a", "--count", "5", "--show-images"]
    assert parse(["neighbours", *flags]) == parse(["memorization", *flags])
    help_text = help_of(capsys)
    assert "memorization RUN" in help_text and "neighbours" not in help_text


def test_every_key_has_help_with_type_and_default(capsys):
    options, _, _ = help_of(capsys).partition("commands:")
    for section in dataclasses.fields(Config):
        for key in dataclasses.fields(getattr(Config(), section.name)):
            flag = f" --{section.name}.{key.name} "
            text = re.split(r" --\w+\.\w+ ", options.split(flag)[-1])[0]
            assert "default: " in text and len(text) > 30, flag


def test_every_algorithm_has_traits_and_a_class():
    assert list(plugins.BUILT_IN["algorithms"]) == list(TRAITS) == list(ALGORITHMS)
    assert {name: code.traits for name, code in ALGORITHMS.items()} == TRAITS
    keys = {key.name for key in dataclasses.fields(AlgorithmConfig)}
    assert set(KNOWN_BY) == keys - {"name", "moments", "options"}


def test_help_needs_neither_mpi_nor_torch():
    code = (
        "import sys; sys.modules['mpi4py'] = None; sys.modules['torch'] = None\n"
        "from fedgan_mpi.__main__ import main\nmain(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--training.rounds" in done.stdout


def test_a_mistake_is_refused_before_torch_is_imported():
    command = [sys.executable, "-X", "importtime", "-m", "fedgan_mpi", "--training.rouns", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    *imports, sentence = done.stderr.splitlines()
    assert sentence == "unknown flag --training.rouns; did you mean training.rounds?"
    assert done.returncode == 1
    modules = {line.rpartition("|")[2].strip() for line in imports}
    assert "mpi4py" in modules and not modules & {"torch", "scipy", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (
            ["evaluate"],
            [
                "If a device has one image, these are the features of that image.",
                "kid and prdc send features of single real images to all ranks",
            ],
        ),
        (
            ["memorization"],
            ["in the features of the scores", "If a device holds one image", "--show-devices"],
        ),
        ([], ["which are the features of the image if a device has only one"]),
    ],
    ids=["evaluate", "memorization", "train"],
)
def test_help_says_what_scores_tell_about_images(arguments, sentences, capsys):
    text = help_of(capsys, *arguments)
    for sentence in sentences:
        assert sentence in text
