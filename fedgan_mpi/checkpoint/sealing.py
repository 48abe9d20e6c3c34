"""The last step of a checkpoint, on the server: write the manifest and rename the directory.

The rename makes the checkpoint complete or absent. Afterwards old checkpoints are removed. Knows
neither MPI nor how the files were written.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgan_mpi.checkpoint.format import (
    FORMAT,
    MANIFEST,
    checkpoint_name,
    checkpoints_of,
    encode_manifest,
    fingerprint,
    read_content,
    read_manifest,
)
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors, sync, write_synced

logger = logging.getLogger(__name__)

Files = Mapping[str, Mapping[str, Any]]
"""File name -> entry in the manifest."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """One checkpoint whose files are on disk."""

    directory: Path
    """`checkpoints` of the run."""
    temporary: Path
    """Directory of the files."""
    round: int
    progress: Mapping[str, Any]
    files: Files
    about: Mapping[str, Any]
    """More keys of the manifest."""
    lost: Sequence[str]
    """Files that are missing because their rank has died."""
    keep_last: int
    best: int | None
    """Round of a checkpoint to keep beside the last ones."""

    def run(self) -> None:
        """Complete the checkpoint. If the disk fails, remove it and raise UserError."""
        try:
            with explain_write_errors(self.directory):
                self._complete()
        except UserError as error:
            shutil.rmtree(self.temporary, ignore_errors=True)
            raise UserError(f"no checkpoint of round {self.round}: {error}") from None

    def _complete(self) -> None:
        carried = self._carry_over_lost_files()
        manifest = {
            "format": FORMAT,
            "round": self.round,
            "progress": self.progress,
            "files": {**self.files, **carried},
            "lost": [name for name in self.lost if name not in carried],
            **self.about,
        }
        write_synced(self.temporary / MANIFEST, encode_manifest(manifest))
        sync(self.temporary)
        final = self.directory / checkpoint_name(self.round)
        replaced = self.directory / f".{final.name}.old"
        if final.exists():  # damaged: the run resumed from an earlier one
            os.replace(final, replaced)
        os.replace(self.temporary, final)
        sync(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)
        self._remove_old(final)

    def _remove_old(self, final: Path) -> None:
        best = None if self.best is None else checkpoint_name(self.best)
        # Checkpoints of later rounds are damaged, or the run would have resumed from them.
        checkpoints = checkpoints_of(self.directory.parent)
        for old in checkpoints[: checkpoints.index(final) + 1][: -self.keep_last]:
            if old.name != best:
                shutil.rmtree(old)

    def _carry_over_lost_files(self) -> dict[str, dict[str, Any]]:
        """Copy lost files from the newest checkpoint that is undamaged, and return their entries.

        Raises UserError naming the damage if there are checkpoints, but all are damaged.
        """
        problem = None
        for checkpoint in reversed(checkpoints_of(self.directory.parent)) if self.lost else ():
            try:
                manifest = read_manifest(checkpoint)
                names = sorted(manifest.files.keys() & set(self.lost))
                contents = {name: read_content(manifest, name) for name in names}
            except UserError as error:
                logger.warning("%s; an earlier checkpoint may name the lost devices", error)
                problem = problem or error
                continue
            for name, content in contents.items():
                write_synced(self.temporary / name, content)
            return {name: fingerprint(content) for name, content in contents.items()}
        if problem is not None:
            raise problem
        return {}
