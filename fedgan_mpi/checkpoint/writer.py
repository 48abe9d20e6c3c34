"""Writes checkpoints while training continues.

`begin` copies the states of all ranks in memory. A thread of each rank writes its copies to a
temporary directory. Once all ranks have reported their files, the server's thread completes the
checkpoint (sealing.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.checkpoint.format import (
    SERVER,
    checkpoint_name,
    device_file,
    fingerprint,
    local_files,
)
from fedgan_mpi.checkpoint.packing import PackedState
from fedgan_mpi.checkpoint.sealing import Files, Seal
from fedgan_mpi.errors import AgreedError, UserError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.files import explain_write_errors, sync, write_synced
from fedgan_mpi.hardware.affinity import use_cores
from fedgan_mpi.run.stats import STATS

_HASH_WORDS = 8
"""Words of 32 bits in a SHA-256."""


class CheckpointWriter:
    """Writes the checkpoints of a job, one at a time."""

    def __init__(
        self,
        rank_state: RankState,
        run: Path,
        *,
        keep_last: int,
        about: Mapping[str, Any],
        log: Callable[[str], None],
        on_complete: Callable[[int, Path], None] = lambda round, directory: None,
    ) -> None:
        """Remove the remains of a killed job. Collective.

        about: JSON for every manifest: configuration, shards, versions.
        log: Called with a sentence if a checkpoint cannot be written. Earlier ones are kept then.
        on_complete: Called on the server with round and directory of each complete checkpoint.
        """
        self.rank_state, self.run = rank_state, run
        self.directory = run / "checkpoints"
        self.keep_last, self.about, self.log = keep_last, about, log
        self._on_complete = on_complete
        self.best: int | None = None
        """Round of a checkpoint that is never removed."""
        self.names = [SERVER, *map(device_file, range(1, rank_state.participation.devices + 1))]
        # One long-lived thread: on a crowded machine, starting a thread takes milliseconds.
        self._thread = ThreadPoolExecutor(
            1, "checkpoint", initializer=use_cores, initargs=(rank_state.link.shared_cores,)
        )
        self._copies: dict[str, PackedState] = {}
        self._pending: _Pending | None = None
        self._sealing: Future[None] | None = None
        self._sealing_round = 0
        rank_state.link.from_server(self._remove_leftovers)

    # ---------------------------------------------------------------- a checkpoint's life

    def begin(self, round: int, progress: Mapping[str, Any]) -> None:
        """Copy the states of all ranks after `round` rounds, and start to write them. Collective.

        Waits for the files of the previous checkpoint. progress: state of the training loop as
        JSON; used on the server.
        """
        self._report(self._finish_files())
        for name, owner in local_files(self.rank_state).items():
            if name in self._copies:
                self._copies[name].fill(owner.state())
            else:
                self._copies[name] = PackedState(owner.state())
        is_server = self.rank_state.link.is_server
        directory = self.directory / f".{checkpoint_name(round)}.tmp"
        self._pending = _Pending(
            round=round,
            progress=json.dumps(progress) if is_server else "",
            directory=directory,
            files=self._thread.submit(
                write_files, directory, self._copies, self.run / STATS if is_server else None
            ),
        )

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint waits for `seal`; the same on every rank."""
        return self._pending is not None

    def local_status(self) -> tuple[bool, bool]:
        """Return (writing, failed): this rank's files of the pending checkpoint are not on disk
        yet; they cannot be written."""
        if self._sealing is not None and self._sealing.done():
            self._report(self._finish_sealing())
        pending = self._pending
        if pending is None or not pending.files.done():
            return pending is not None, False
        return False, _write_problem(pending) is not None

    def seal(self) -> None:
        """Complete the pending checkpoint, whose files are on disk, in the server's thread.

        Collective: sums the ranks' tables of files, of which rounds send none.
        """
        pending, self._pending = self._pending, None
        assert pending is not None
        table = encode_files(pending.files.result(), self.names)
        files = self.rank_state.link.sum(table.ravel()).reshape(table.shape)
        self._report(self._finish_sealing())
        if self.rank_state.link.is_server:
            seal = Seal(
                directory=self.directory,
                temporary=pending.directory,
                round=pending.round,
                progress=json.loads(pending.progress),
                files=decode_files(files, self.names),
                about=self.about,
                lost=self._lost_files(),
                keep_last=self.keep_last,
                best=self.best,
            )
            self._sealing = self._thread.submit(seal.run)
            self._sealing_round = pending.round

    def drop_failed(self) -> None:
        """Remove the pending checkpoint, of which a rank could not write its files. Collective."""
        self._report(self._finish_files())

    def complete(self) -> str | None:
        """Wait until the last checkpoint is complete. Collective.

        Returns the reason if it cannot be written, the same on every rank, without logging it.
        """
        problem = self._finish_files()
        try:
            self.rank_state.link.from_server(self._raise_seal_problem)
        except AgreedError as error:
            problem = str(error)
        return problem

    def abandon(self) -> None:
        """Remove the pending checkpoint, to which a dead rank does not contribute. Collective."""
        pending, self._pending = self._pending, None
        if pending is not None:
            _write_problem(pending)
        self._report(self._finish_sealing())
        self.rank_state.link.barrier()
        self.rank_state.link.from_server(self._remove_leftovers)

    def discard(self) -> None:
        """Remove what the server has begun to write, without the other ranks: the run fails."""
        if self.rank_state.link.is_server:
            with suppress(Exception):  # the failure is told, not what follows from it
                if self._pending is not None:
                    self._pending.files.exception()  # waits until they are written
                self._finish_sealing()
                self._remove_leftovers()

    # ---------------------------------------------------------------- inside

    def _finish_files(self) -> str | None:
        """Wait until the pending files of all ranks are on disk, then seal. Collective.

        Returns the problem of a rank that could not write, the same on every rank.
        """
        pending = self._pending
        if pending is None:
            return None
        link = self.rank_state.link
        try:
            with link.shows_activity():  # the disk may be slow
                problem = _write_problem(pending)
            link.agree(problem)
        except AgreedError as error:
            self._pending = None
            shutil.rmtree(pending.directory, ignore_errors=True)
            return f"no checkpoint of round {pending.round}: {error}"
        self.seal()
        return None

    def _finish_sealing(self) -> str | None:
        """Wait for the server's thread, and return the reason if sealing failed."""
        sealing, self._sealing = self._sealing, None
        error = None if sealing is None else sealing.exception()
        if error is not None and not isinstance(error, UserError):
            raise error
        if sealing is not None and error is None:
            round = self._sealing_round
            self._on_complete(round, self.directory / checkpoint_name(round))
        return None if error is None else str(error)

    def _raise_seal_problem(self) -> None:
        with self.rank_state.link.shows_activity():
            problem = self._finish_sealing()
        if problem is not None:
            raise UserError(problem)

    def _report(self, problem: str | None) -> None:
        if problem is not None:
            self.log(problem)

    def _lost_files(self) -> list[str]:
        """Return the files of devices whose rank has died."""
        link = self.rank_state.link
        devices = range(1, self.rank_state.participation.devices + 1) if link.lost else ()
        return [device_file(k) for k in devices if link.rank_of(k) is None]

    def _remove_leftovers(self) -> None:
        """Remove unfinished checkpoints of a killed job. Raises UserError if that is impossible."""
        with explain_write_errors(self.directory):
            self.directory.mkdir(exist_ok=True)
            for path in self.directory.glob(".round_*"):
                if path.is_symlink() or path.is_file():
                    path.unlink()
                else:
                    shutil.rmtree(path)


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A checkpoint that is not sealed yet."""

    round: int
    progress: str
    directory: Path
    """Temporary directory, the same on every rank."""
    files: Future[Files]
    """Entries of this rank's files, once they are on disk."""


def _write_problem(pending: _Pending) -> str | None:
    """Wait for this rank's files, and return the reason if they cannot be written."""
    error = pending.files.exception()
    if isinstance(error, OSError):
        return f"{pending.directory} cannot be written: {error.strerror}"
    if error is not None:
        raise error
    return None


def write_files(directory: Path, states: Mapping[str, PackedState], stats: Path | None) -> Files:
    """Write a rank's states and sync them, and return their manifest entries.

    stats: stats.jsonl, on the server. It is synced because a resumed run needs the rounds before
    the checkpoint.
    """
    directory.mkdir(exist_ok=True)
    for name, packed in states.items():
        write_synced(directory / name, packed.content)
    if stats is not None:
        sync(stats)
    return {name: fingerprint(packed.content) for name, packed in states.items()}


def encode_files(files: Files, names: Sequence[str]) -> NDArray[np.float64]:
    """Return manifest entries as a table that can be summed over ranks, (names, 9).

    A row is the number of bytes and the SHA-256 in words of 32 bits, which float64 holds exactly;
    zeros for a file of another rank.
    """
    table = np.zeros((len(names), 1 + _HASH_WORDS))
    for name, entry in files.items():
        row = table[names.index(name)]
        row[0] = entry["bytes"]
        row[1:] = np.frombuffer(bytes.fromhex(entry["sha256"]), ">u4")
    return table


def decode_files(table: NDArray[np.float64], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the manifest entries in a table of `encode_files`."""
    return {
        name: {"bytes": int(row[0]), "sha256": row[1:].astype(">u4").tobytes().hex()}
        for row, name in zip(table, names, strict=True)
        if row[0]
    }
