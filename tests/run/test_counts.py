"""Numbers of images that no machine can make, and readers of output that leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_runs import make_run

from fedgan_mpi.__main__ import main
from fedgan_mpi.nn.registry import build_from
from fedgan_mpi.run.generator_file import load, write_generator


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    G, _ = build_from("dcgan", (1, 16, 16), 8, 2, width=4)
    about = {
        "architecture": "dcgan", "options": {}, "image_shape": [1, 16, 16], "nz": 8, "width": 4,
        "class_shares": [0.5, 0.5], "class_names": ["a", "b"],
    }  # fmt: skip
    write_generator(directory, "generator", G, about)
    return directory


@pytest.mark.parametrize("style", ["grid", "interpolation", "classes"])
@pytest.mark.parametrize("count", ["1000000000000", "10000000", "9007199254740992"])
def test_a_count_that_fits_into_no_picture_is_refused(generator, tmp_path, capsys, style, count):
    out = tmp_path / "x.png"
    arguments = ["sample", str(generator), "--count", count, "--out", str(out), "--style", style]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"count is {count}, but must be at most " in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--count", "0"], ["--count", "1" + "0" * 30], ["--count", "1" + "0" * 400],
        ["--seed", "9223372036854775808"], ["--seed", "-1"], ["--label", "1" + "0" * 30],
        ["--label", "2"],
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused(generator, tmp_path, capsys, flags):
    assert main(["sample", str(generator), "--out", str(tmp_path / "x.png"), *flags]) == 1
    error = capsys.readouterr().err
    assert flags[0].lstrip("-") in error and error.count("\n") == 1 and len(error) < 700
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", ["1e300", "inf", "nan", "0", "-1"])
def test_seconds_between_updates_have_a_range(tmp_path, capsys, seconds):
    assert main(["watch", str(tmp_path), f"--seconds={seconds}"]) == 1
    assert "seconds is" in capsys.readouterr().err


def test_largest_seed_and_usual_counts_are_accepted(generator, tmp_path):
    out = tmp_path / "x.png"
    arguments = ["--count", "9", "--seed", str(2**63 - 1), "--out", str(out)]
    assert main(["sample", str(generator), *arguments]) == 0 and out.exists()
    assert load(generator)(3).shape == (3, 1, 16, 16)


COMMANDS = [["watch", "a", "--seconds=0.1"], ["watch", "a", "--once"], ["jobs"], ["plugins"],
            ["compare", "a", "b"], ["--help"], ["sample", "--help"]]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_ends_a_command_without_a_word(tmp_path, arguments):
    """As with `watch RUN | head -1`."""
    for seed, name in enumerate(("a", "b")):
        make_run(tmp_path / name, {0: 9.0, 40: 3.0}, f"--run.seed={seed}")
    code = (
        "import os, sys; os.read(0, 1); from fedgan_mpi.__main__ import main; "
        f"sys.exit(main({json.dumps(arguments)}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as job:  # fmt: skip
        job.stdout.close()
        job.stdin.write("x")
        job.stdin.close()
        assert job.stderr.read() == ""
        # argparse itself ignores that its help cannot be written.
        assert job.wait(60) == 141 or "--help" in arguments
