"""Two commands on one --out, labels with gaps, numbers out of range, and readers that leave."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import originals
import pytest
from data_prep_helpers import DATA, SERIAL, SOURCES, error_of

from data_prep import directory
from data_prep.__main__ import main
from data_prep.directory import locked
from data_prep.inspect import find_problems
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.errors import UserError


def command(source: Path, out: Path, *more: str) -> list[str]:
    files = ["--source", str(source), "--out", str(out), "--devices", "2"]
    return ["imagefolder", *files, "--size", "16", *SERIAL, *more]


# ------------------------------------------------------------ the lock


def hold(out: Path, connection) -> None:
    with locked(out):
        connection.send("ready")
        connection.poll(60)


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the lock of tmp_path/out."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / "out", there))
    process.start()
    assert here.recv() == "ready"
    yield process
    process.kill()
    process.join(60)


def test_a_second_command_is_refused_and_removes_nothing(
    tmp_path, capsys, other_process, monkeypatch
):
    monkeypatch.setattr(directory, "_LOCK_SECONDS", 0.1)
    originals.image_folder(tmp_path / "in")
    (tmp_path / "out" / "device_0001.h5").write_bytes(b"of the first command")
    (tmp_path / "out" / ".device_0002.h5.7.tmp").write_bytes(b"of the first command")
    assert main(command(tmp_path / "in", tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error == (
        f"{tmp_path}/out is being written by another data_prep; wait until it ends, or choose "
        "another --out\n"
    )
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_the_lock_of_a_killed_process_is_free(tmp_path, other_process):
    other_process.kill()
    other_process.join(60)
    with locked(tmp_path / "out") as created:
        assert not created


def test_a_command_waits_for_a_process_that_is_about_to_end(tmp_path, other_process):
    """Decoding processes of a killed command hold its lock for a moment."""
    code = f"import os, time; time.sleep(1); os.kill({other_process.pid}, 9)"
    with subprocess.Popen([sys.executable, "-c", code]), locked(tmp_path / "out"):
        pass


def test_the_lock_leaves_no_file_and_ends_with_the_block(tmp_path):
    for created in (True, False):
        with locked(tmp_path / "a" / "out") as is_new:
            assert is_new == created
        assert list((tmp_path / "a" / "out").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="already exists and is never overwritten"),
        locked(tmp_path / "file"),
    ):
        pass


def test_many_identical_commands_at_once_make_one_directory(tmp_path):
    """Each ends with complete shards, or says who writes or has written them."""
    originals.image_folder(tmp_path / "in")
    arguments = [sys.executable, "-m", "data_prep", *command(tmp_path / "in", tmp_path / "out")]
    jobs = [
        subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(4)
    ]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 1, 1, 1], errors
    for job, error in zip(jobs, errors, strict=True):
        refused = "already exists and is never" in error or "being written by another" in error
        assert refused == bool(job.returncode) and "Traceback" not in error
    assert list(find_problems(tmp_path / "out", Manifest.read(tmp_path / "out"))) == []


# ------------------------------------------------------------ labels


@pytest.mark.parametrize(
    "values",
    [[0, 10**7], [3, 7, 900], [0, 2**63 - 1], [5], list(range(10)), [2**40, 2**40 + 1]],
)
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_labels_with_gaps_are_numbered_by_those_that_occur(tmp_path, values, dtype):
    labels = np.resize(np.array(values, dtype), 60)
    images = originals.noise(60, 16, 16)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels)
    files = ["--source", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]
    assert main(["npz", *files, "--devices", "2", *SERIAL]) == 0
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.class_names == [str(value) for value in values]
    assert len(manifest.histograms[0]) == len(values)
    shard = read_shard(tmp_path / "out" / "device_0001.h5", image_shape=(1, 16, 16))
    originals_of = [int(manifest.class_names[label]) for label in shard.labels]
    assert originals_of == labels[shard.indices].tolist()


def test_labels_that_occur_in_one_part_only(tmp_path):
    parts = {"train": [4, 9] * 10, "val": [4, 4], "test": [7, 9]}
    arrays = {}
    for part, labels in parts.items():
        arrays[f"{part}_images"] = originals.noise(len(labels), 16, 16)
        arrays[f"{part}_labels"] = np.array(labels)[:, None]
    np.savez(tmp_path / "x.npz", **arrays)
    source = SOURCES["npz"](tmp_path / "x.npz")
    assert source.class_names == ["4", "7", "9"]
    names = [source.class_names[label] for label in source.labels]
    assert names == [str(label) for labels in parts.values() for label in labels]


@pytest.mark.skipif(not (DATA / "pneumoniamnist.npz").exists(), reason="no PneumoniaMNIST")
def test_labels_of_a_real_file_stay_as_they_are():
    source = SOURCES["npz"](DATA / "pneumoniamnist.npz")
    with np.load(DATA / "pneumoniamnist.npz") as arrays:
        labels = np.concatenate([arrays[f"{part}_labels"] for part in ("train", "val", "test")])
        images = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
    assert np.array_equal(source.labels, labels[:, 0]) and source.class_names == ["0", "1"]
    assert np.array_equal(source.images[:, 0], images)


# ------------------------------------------------------------ files of another kind


def test_a_single_array_is_named(tmp_path, capsys):
    for name in ("x.npy", "x.npz"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, originals.noise(9, 4, 4))
        error = error_of(capsys, "npz", tmp_path / name)
        assert f"{name} is not an npz file" in error and "it is a single array, a .npy" in error


@pytest.mark.parametrize("dataset", ["npz", "mnist", "cifar10", "celeba", "rsna", "imagefolder"])
@pytest.mark.parametrize("kind", ["fifo", "device", "empty", "text"])
def test_a_source_that_is_no_data_set(tmp_path, capsys, dataset, kind):
    path = tmp_path / "in"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("" if kind == "empty" else "hello")
    assert str(path) in error_of(capsys, dataset, path)


# ------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--size", ["0", "-1", "1e3", "16385", "9" * 50, "9" * 5000, "²", "١٦", ""]),
        ("--devices", ["0", "9" * 30, "9" * 5000, "1.5"]),
        ("--seed", ["-1", "9" * 30, "9" * 5000]),
        ("--processes", ["0", "1025", "9" * 20]),
        ("--skip-bad", ["-1", "9" * 30]),
    ],
)
def test_a_number_out_of_range_is_refused(tmp_path, capsys, flag, values):
    for value in values:
        arguments = ["digits", "--out", str(tmp_path / "out"), flag, value]
        assert main(arguments) != 0
        error = capsys.readouterr().err
        assert f"argument {flag}: " in error and "Traceback" not in error
        assert max(map(len, error.splitlines())) < 200
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------ a reader that leaves


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    arguments = ["digits", "--out", str(out), "--devices", "100", "--partition", "iid", *SERIAL]
    assert main(arguments) == 0
    return out


@pytest.mark.parametrize("arguments", [["inspect"], ["--help"], ["mnist", "--help"]])
def test_a_reader_that_leaves_ends_the_command_without_a_word(shards, arguments):
    """As with `inspect shards | head -1`."""
    arguments = [*arguments, str(shards)] if arguments == ["inspect"] else arguments
    with subprocess.Popen(
        [sys.executable, "-c", "import sys, os; os.read(0, 1); from data_prep.__main__ import main;"
         f"sys.exit(main({arguments!r}))"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as job:  # fmt: skip
        job.stdout.close()
        job.stdin.write(b"x")
        job.stdin.close()
        assert job.stderr.read() == b""
        # argparse itself ignores that its help cannot be written.
        assert job.wait(60) == 141 or "--help" in arguments
