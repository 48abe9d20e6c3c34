"""Options of the run directory and the seed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fedgan_mpi.config.paths import set_expanded
from fedgan_mpi.config.require import require
from fedgan_mpi.files import PRIVATE, UMASK_FORM, is_umask

_MAX_NAME = 240
"""File systems allow 255 bytes. An unfinished run may be renamed to a name that needs the rest."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Name, place and seed of the run."""

    name: str | None = None
    """Name of the run directory. None: data set, algorithm and schedule, with a number if taken."""
    directory: str = "runs"
    """Parent of run directories. On a cluster, every rank must see this file system."""
    umask: str = PRIVATE
    """Permissions that the run's files and directories lack, in octal. 077: only you can read them.
    027: your group can read them. 022: all users can."""
    seed: int = 0
    """Seed of all random streams: parameters, batches, noise, participation, scores."""

    def __post_init__(self) -> None:
        set_expanded(self, "directory")
        name = self.name
        valid = name is None or (name not in {"", ".", ".."} and not {"/", "\0"} & {*name})
        require(valid, "run.name", name, "a plain directory name")
        nbytes = len(os.fsencode(name or ""))
        right = f"at most {_MAX_NAME} bytes long, not {nbytes}"
        require(nbytes <= _MAX_NAME, "run.name", name, right)
        valid = self.directory != "" and "\0" not in self.directory
        require(valid, "run.directory", self.directory, "a path")
        require(is_umask(self.umask), "run.umask", self.umask, UMASK_FORM)
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "from 0 to 2^63 - 1")
