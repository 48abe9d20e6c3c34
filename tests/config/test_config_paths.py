"""Paths in files and flags: the home directory, paths beside a TOML file, and a mark of UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep.command_line import parse as parse_data_prep
from fedgan_mpi.cli.commands import parse
from fedgan_mpi.config import Config
from fedgan_mpi.config.data import DataConfig
from fedgan_mpi.config.io import read_config
from fedgan_mpi.config.run import RunConfig
from fedgan_mpi.errors import UserError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


KEYS = ["data.shards", "data.heldout", "run.directory", "evaluation.inception_weights"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("text", "expected"), [("~/a/b", "{}/a/b"), ("a~b", "a~b")])
def test_the_home_directory_is_expanded(home, key, text, expected):
    section, name = key.split(".")
    Path("run.toml").write_text(f"[{section}]\n{name} = '{text}'\n")
    for config in (
        parse([f"--{key}={text}"]).config, parse(["run.toml"]).config, read_config(Path("run.toml"))
    ):  # fmt: skip
        assert getattr(getattr(config, section), name) == expected.format(home)


def test_the_home_directory_is_expanded_in_the_python_interface(home):
    config = Config(run=RunConfig(directory="~/r"), data=DataConfig(shards="~/s"))
    assert (config.run.directory, config.data.shards) == (f"{home}/r", f"{home}/s")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["evaluate", "~/r", "--shards=~/s"], {"run": "r", "shards": "s"}),
        (["sample", "~/r", "--out=~/x.png"], {"run": "r", "out": "x.png"}),
        (["export", "~/r", "--format=onnx", "--out=~/x"], {"run": "r", "out": "x"}),
        (["watch", "~/r"], {"run": "r"}),
        (["compare", "~/r", "--out=~/x"], {"out": "x"}),
        (["memorization", "~/r"], {"run": "r"}),
    ],
)
def test_the_home_directory_is_expanded_for_every_command(home, arguments, names):
    command = parse(arguments)
    assert {name: getattr(command, name) for name in names} == {
        name: home / value for name, value in names.items()
    }


def test_the_home_directory_is_expanded_for_data_prep(home):
    command = parse_data_prep(["mnist", "--source=~/m", "--out=~/o", "--map=~/d.csv"])
    assert (command.source, command.out) == (home / "m", home / "o")
    assert parse_data_prep(["inspect", "~/o"]).shards == home / "o"


# ------------------------------------------------------------ beside a file


@pytest.mark.parametrize("key", ["data.shards", "data.heldout", "evaluation.inception_weights"])
def test_an_input_beside_the_file_is_found(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    Path("experiments/shards").mkdir(parents=True)
    section, name = key.split(".")
    file = Path("experiments/run.toml")
    for text, expected in (
        ("shards", "experiments/shards"), ("../experiments/shards", None), ("nowhere", "nowhere"),
        (str(tmp_path / "x"), str(tmp_path / "x")),
    ):  # fmt: skip
        file.write_text(f"[{section}]\n{name} = '{text}'\n")
        for config in (read_config(file), parse([str(file)]).config):
            found = getattr(getattr(config, section), name)
            assert found == expected or (
                expected is None and os.path.samefile(found, "experiments/shards")
            )


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("experiments/shards").mkdir(parents=True)
    Path("shards").mkdir()
    file = Path("experiments/run.toml")
    file.write_text("[data]\nshards = 'shards'\n[run]\ndirectory = 'runs'\n")
    config = parse([str(file)]).config
    # Outputs go to the working directory, whether it exists or not.
    assert (config.data.shards, config.run.directory) == ("shards", "runs")
    assert parse([str(file), "--data.shards=other"]).config.data.shards == "other"


# ------------------------------------------------------------ text


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf[run]\r\nname = 'a'\r\n")
    assert read_config(path).run.name == "a"
    path.write_bytes("[run]\nname = 'a'\n".encode("utf-16"))
    with pytest.raises(UserError, match="cannot be read: not UTF-8 text"):
        read_config(path)


# ------------------------------------------------------------ defaults


def test_wgan_gp_needs_no_other_option_where_d_has_no_norm(tmp_path):
    """None means no normalization at 16 pixels, which the digits have."""
    for more in ([], ["--model.size=16"], ["--model.discriminator_norm=none", "--model.size=64"]):
        assert parse(["--training.loss=wgan-gp", *more]).config.training.loss == "wgan-gp"
    mixture = ["--algorithm.name=ensemble", "--algorithm.mode=mean", "--model.size=32"]
    assert parse(["--training.loss=wgan-gp", *mixture]).config.model.discriminator_norm is None
    for more in (["--model.size=32"], ["--model.discriminator_norm=batch"]):
        with pytest.raises(UserError, match=r"model.discriminator_norm is .* but must be 'none'"):
            parse(["--training.loss=wgan-gp", *more])


@pytest.mark.parametrize("norm", [None, "none", "batch"])
@pytest.mark.parametrize("size", [16, 32])
def test_wgan_gp_on_shards_is_checked_with_their_size(size, norm):
    flags = ["--training.loss=wgan-gp", "--data.shards=x"]
    flags += [] if norm is None else [f"--model.discriminator_norm={norm}"]
    valid = norm == "none" or (norm is None and size == 16)
    if norm == "batch":
        with pytest.raises(UserError, match=r"model.discriminator_norm is 'batch'"):
            parse(flags)
        return
    config = parse(flags).config
    if valid:
        config.check_norm(size)
        return
    with pytest.raises(UserError, match="None means 'batch' at 32 pixels"):
        config.check_norm(size)
