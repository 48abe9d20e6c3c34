"""Benchmarks are run by hand. Here each one is imported, and prints its help if it has flags."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HAVE_FLAGS = ("parser.", "study.Study(")
FILES = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
MODULES = (
    "accept_commands", "accept_jobs", "common", "fuzz_readers", "methods", "study",
    "synthetic_data",
)  # fmt: skip
"""Files that are no programs."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    name = f"benchmark_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert path.stem in MODULES or callable(getattr(module, "main", None))


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if path.stem not in MODULES and any(word in path.read_text() for word in HAVE_FLAGS)
    ],
    ids=lambda path: path.stem,
)
def test_a_benchmark_prints_help(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {path.name}")
