"""Options of participation and of the radio cell that the parser refuses."""

from __future__ import annotations

import pytest

from fedgan_mpi.cli.parser import parse_train
from fedgan_mpi.errors import UserError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("policy=random fraction=1.5", "participation.fraction is 1.5, but must be above 0 and"),
        ("policy=random fraction=0.5 count=2", "participation.count is 2, but must be left out"),
        ("fraction=0.5", "participation.fraction is 0.5, but must be left out when participation."),
        ("policy=best_channel", "participation.count is None, but must be at least 1 when"),
    ],
)
def test_impossible_numbers_of_participants(flags, message):
    with pytest.raises(UserError, match=message):
        parse_train([f"--participation.{flag}" for flag in flags.split()])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["name=mdgan"], "'importance', but must be another policy for mdgan, whose devices"),
        (["name=uagan"], "'importance', but must be another policy for uagan, whose devices"),
        (["name=dp_fedavg_gan"], "another policy for dp_fedavg_gan, because the choice"),
        (["name=fegan", "preset=ifl"], "another policy for the preset ifl, whose shares are known"),
    ],
)
def test_importance_for_an_algorithm_without_averages_of_updates(flags, message):
    with pytest.raises(UserError, match=message):
        parse_train(
            ["--participation.policy=importance", "--participation.count=2"]
            + [f"--algorithm.{flag}" for flag in flags]
        )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "nearest_m=600",
            "wireless.nearest_m is 600.*, but must be at most wireless.radius_m, 500",
        ),
        ("bandwidth_hz=0", "wireless.bandwidth_hz is 0.*, but must be above 0 and finite"),
        ("shadowing_db=-1", "wireless.shadowing_db is -1.*, but must be at least 0 and finite"),
        ("bits_per_parameter=0", "wireless.bits_per_parameter is 0, but must be from 1 to 64"),
        ("device_macs_per_second=[1e9,0]", r"\[1000000000.0, 0.0\], but must be numbers above 0"),
    ],
)
def test_impossible_cells(flag, message):
    with pytest.raises(UserError, match=message):
        parse_train([f"--wireless.{flag}"])
