"""Command-line options: defaults, invalid values, and options of another partition."""

from __future__ import annotations

import originals
import pytest
from data_prep_helpers import error_of

from data_prep.__main__ import main
from data_prep.command_line import parse, partition_flags
from data_prep.option_types import size
from data_prep.plugins import make_partition
from fedgan_mpi.errors import UserError

DIGITS = ["digits", "--out", "shards"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--alpha", "0.1"], "--alpha belongs to --partition dirichlet or quantity, but"),
        (["--partition=classes", "--blocks=3"], "--blocks belongs to --partition shards, but"),
        (["--partition=dirichlet", "--classes=2"], "--classes belongs to --partition classes, but"),
        (["--map", "nofile.csv"], "--map belongs to --partition by_file, but --partition is iid"),
        (["--min-images", "10"], "--min-images belongs to --partition dirichlet or"),
        (["--attributes", "class"], "--attributes belongs to --partition attribute, but"),
    ],
)
def test_option_of_another_partition_is_refused(options, reason):
    with pytest.raises(UserError) as error:
        partition_flags(parse([*DIGITS, *options]))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("iid", [], {}),
        ("dirichlet", [], {"alpha": 0.5, "min_images": 10}),
        ("quantity", ["--alpha", "2"], {"alpha": 2.0, "min_images": 10}),
        ("classes", [], {"classes": 2}),
        ("shards", ["--blocks", "5"], {"blocks": 5}),
        ("attribute", ["--attributes=class"], {"attributes": ["class"]}),
    ],
)
def test_partition_takes_options_or_defaults(name, options, expected):
    partition = make_partition(
        name, partition_flags(parse([*DIGITS, f"--partition={name}", *options])), {}
    )
    assert partition.name == name
    assert {key: getattr(partition, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--devices", "121"], "120 images cannot fill 121 shards"),
        (["--partition", "dirichlet", "--alpha", "0"], "--alpha is 0"),
        (["--partition", "dirichlet", "--devices", "13"], "13 devices with at least 10"),
        (["--partition", "classes", "--classes", "11"], "--classes is 11"),
        (["--partition", "attribute", "--attributes", "Male"], "no attribute 'Male'"),
        (["--partition", "by_file", "--map", "/nowhere.csv"], "/nowhere.csv cannot be read"),
    ],
)
def test_option_that_contradicts_data_is_refused(tmp_path, capsys, options, reason):
    originals.mnist(tmp_path / "in")
    assert reason in error_of(capsys, "mnist", tmp_path / "in", *options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["svhn", "--out", "x"],
        ["mnist", "--out", "x"],
        ["digits"],
        ["digits", "--out", "x", "--devices", "0"],
        ["digits", "--out", "x", "--size", "-3"],
        ["digits", "--out", "x", "--channels", "2"],
        ["digits", "--out", "x", "--heldout-share", "1"],
        ["digits", "--out", "x", "--skip-bad", "some"],
        ["digits", "--out", "x", "--partition", "random"],
    ],
)
def test_invalid_option_is_refused(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "error: " in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("7", "7 must be an integer of at least 8"),
        ("0", "0 must be an integer of at least 8"),
        ("-3", "-3 must be an integer of at least 8"),
        ("48x7", "7 must be an integer of at least 8"),
        ("24x0", "0 must be an integer of at least 8"),
        ("24x", "24x must be N or HEIGHTxWIDTH, such as 48x64"),
        ("x24", "x24 must be N or HEIGHTxWIDTH"),
        ("24x32x3", "24x32x3 must be N or HEIGHTxWIDTH"),
        ("24X32", "24X32 must be N or HEIGHTxWIDTH"),
        ("20000", "20000 must be at most 16384"),
    ],
)
def test_an_impossible_size_is_refused(tmp_path, capsys, text, reason):
    assert main(["digits", "--out", str(tmp_path / "out"), "--size", text]) == 2
    message = capsys.readouterr().err
    assert "--size" in message and reason in message


def test_a_size_has_one_side_or_two():
    assert (size("48"), size("48x64")) == (48, (48, 64))
