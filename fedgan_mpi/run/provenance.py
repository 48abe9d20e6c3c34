"""Describes the machine, the versions and the git state of a job, for config.toml."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedgan_mpi.run.output import printable

_PACKAGES = ("fedgan_mpi", "mpi4py", "torch", "numpy", "h5py")


def describe_machine() -> dict[str, Any]:
    """Return command line, host, platform, cores, git state and versions as a TOML table."""
    python = Path(sys.executable).name
    return {
        "command": printable(" ".join([python, "-m", "fedgan_mpi", *sys.argv[1:]])),
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count() or 1,
        "git": _git_state(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a clone that is not installed
    return versions


def _git_state() -> str:
    """Return the program's commit, with '+' if files were changed; 'none' outside of a clone.

    A program installed below another project's clone does not belong to that clone.
    """
    source = Path(__file__)
    try:
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        return _git(source.parent, "describe", "--always", "--dirty=+", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout.strip()
