"""A number that no arithmetic can use is refused by its key, from a flag and from a file."""

from __future__ import annotations

import pytest

from fedgan_mpi.cli.commands import parse
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import read_config
from fedgan_mpi.config.model import ModelConfig
from fedgan_mpi.config.parsing import DEFAULTS
from fedgan_mpi.errors import UserError

NUMBERS = {
    key: default
    for key, default in DEFAULTS.items()
    if isinstance(default, int | float) and not isinstance(default, bool)
}
HUGE = ["1" + "0" * 30, "-1" + "0" * 30, "9007199254740993", "1" + "0" * 400]


def test_there_are_many_numbers():
    assert len(NUMBERS) > 30


@pytest.mark.parametrize("key", NUMBERS)
def test_a_huge_number_is_refused(tmp_path, key):
    section, name = key.split(".")
    for value in [*HUGE, "1e300", "-1e300", "nan"]:
        if value in HUGE and isinstance(NUMBERS[key], float) and len(value) < 40:
            value += "0" * 90  # a float may be larger
        with pytest.raises(UserError) as refused:
            parse([f"--{key}={value}"])
        assert key in str(refused.value) and "\n" not in str(refused.value)
        assert len(str(refused.value)) < 500
        path = tmp_path / "run.toml"
        path.write_text(f"[{section}]\n{name} = {value}\n")
        with pytest.raises(UserError, match=key):
            read_config(path)


def test_a_huge_number_of_the_python_interface_is_refused():
    with pytest.raises(
        UserError, match=r"model.nz is 1267650600228229401496703205376, but must be"
    ):
        Config(model=ModelConfig(nz=2**100))


def test_large_numbers_are_accepted():
    assert parse(["--training.rounds", str(2**53)]).config.training.rounds == 2**53
    assert parse(["--wireless.bandwidth_hz=1e15"]).config.wireless.bandwidth_hz == 1e15
