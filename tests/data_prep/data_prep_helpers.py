"""Helpers of the data_prep tests: command lines, comparisons of shards, damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np

from data_prep.__main__ import main
from data_prep.plugins import load
from fedgan_mpi.plugins.built_in import BUILT_IN, SOURCE_KEY

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FEDGAN_MPI_DATA", "/nonexistent"))
"""A directory with the original MNIST/ and pneumoniamnist.npz, if the environment names one."""
SOURCES = {name: load(SOURCE_KEY, name) for name in BUILT_IN["sources"]}
"""Built-in name -> class."""
SERIAL = ["--features", "none", "--processes", "1"]


def celeba_command(source: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments that partition CelebA by two attributes over three devices."""
    files = ["--source", str(source), "--out", str(out), "--size", "16", "--devices", "3"]
    return ["celeba", *files, "--partition", "attribute", "--attributes", "Male,Smiling", *more]


def read_arrays(directory: Path) -> dict[str, np.ndarray]:
    """Read all datasets of all shards, by "file/dataset"."""
    arrays = {}
    for path in sorted(directory.glob("*.h5")):
        with h5py.File(path) as file:
            arrays |= {f"{path.name}/{name}": file[name][...] for name in file}
    return arrays


def are_equal(first: Path, second: Path) -> bool:
    """Compare the datasets and manifests of two shard directories."""
    a, b = read_arrays(first), read_arrays(second)
    manifests = [json.loads((path / "shards.json").read_text()) for path in (first, second)]
    return (
        a.keys() == b.keys()
        and all(np.array_equal(a[name], b[name]) for name in a)
        and manifests[0] == manifests[1]
    )


def error_of(capsys, dataset: str, source: Path, *more: str) -> str:
    """Run a command that must fail and leave no files. Return its error message of one line."""
    out = source.parent / "result" / "out"
    out.parent.mkdir(exist_ok=True)
    arguments = [dataset, "--source", str(source), "--out", str(out), *SERIAL]
    assert main([*arguments, *more]) != 0
    assert list(out.parent.iterdir()) == []
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def truncate(path: Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


class Attack:
    """An object whose pickle calls os.system."""

    def __reduce__(self):
        return os.system, ("touch pwned",)
