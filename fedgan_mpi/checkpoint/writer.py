"""Checkpoints as a job writes them.

Training waits for a copy in memory and no longer: threads bring parts to disk
(checkpoint_parts.py), and a thread of the server's makes the whole valid: at once where it has
written all parts itself, else when the numbers of a later round have told what the parts are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan_mpi.checkpoint.format import (
    MANIFEST,
    SERVER,
    TOGETHER,
    checkpoint_name,
    checkpoints_of,
    device_file,
    fingerprint,
    read_content,
    read_manifest,
)
from fedgan_mpi.checkpoint.parts import SPARE, Files, make_parts
from fedgan_mpi.comm.link import AgreedError
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.files import is_ours_alone, sync, write_synced, writing
from fedgan_mpi.hardware.affinity import run_anywhere

_PIECES = 8  # of 32 bits, in a SHA-256


class Checkpoints:
    """Those that a job writes, one after the other."""

    def __init__(
        self,
        rank_state: RankState,
        run: Path,
        *,
        keep_last: int,
        about: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        """Collective. about: JSON for every manifest: configuration, shards, versions. say: takes
        what was in the way of a checkpoint; those before it stay then."""
        self.rank_state, self.directory = rank_state, run / "checkpoints"
        self.keep_last, self.about, self.log = keep_last, about, say
        self.best: int | None = None
        """Round whose checkpoint is kept however old it is."""
        self.names = [SERVER, *map(device_file, range(1, rank_state.participation.devices + 1))]
        # One thing after the other, by a thread that outlives a checkpoint: on a crowded machine a
        # new one would keep its parent waiting until it gets a core.
        self._thread = ThreadPoolExecutor(
            1, "checkpoint", initializer=run_anywhere, initargs=(rank_state.link.shared_cores,)
        )
        self._parts = make_parts(rank_state, self._thread, run)
        self.empty = encode({}, [] if self._parts.by_server else self.names)
        """What a rank tells that has no part to tell of."""
        self._under_way: _Writing | None = None
        self._sealing: Future[None] | None = None
        rank_state.link.from_server(self._sweep)

    def begin(self, round: int, progress: Mapping[str, Any]) -> None:
        """Collective. Copy all that `round` finished rounds left behind, and begin to write it.

        progress: JSON, the server's; what the train loop itself must remember.
        """
        self._tell(self._wait_for_parts())
        if self._parts.by_server:
            self._tell(self._finish_sealing())
        writing = _Writing(
            round=round,
            progress=json.dumps(progress) if self.rank_state.link.is_server else "",
            files=self._parts.begin(round),
        )
        if self._parts.by_server:
            self._make_valid(writing, writing.files.result)
        else:
            self._under_way = writing

    def begin_ahead(self, round: int) -> None:
        """All do, with their part of the last of `round` rounds behind them, after which a
        checkpoint is due."""
        self._parts.begin_ahead(round)

    @property
    def waits(self) -> bool:
        """Whether parts are to be sealed; the same on every rank."""
        return self._under_way is not None

    def tell(self) -> tuple[bool, bool, NDArray[np.float64]]:
        """Of this rank's part: whether it is still on its way to disk, whether that failed, and
        what it is, to be added up with the other ranks' for `seal`."""
        if self._sealing is not None and self._sealing.done():
            self._tell(self._finish_sealing())  # soon, if it went wrong
        writing = self._under_way
        if writing is None or not writing.files.done():
            return writing is not None, False, self.empty
        if self._problem(writing) is not None:
            return False, True, self.empty
        files = writing.files.result()
        return False, False, encode(files, self.names) if files else self.empty

    def seal(self, parts: NDArray[np.float64]) -> None:
        """All parts are on disk, and all ranks have the sum of what they told: the server makes
        the checkpoint valid."""
        writing, self._under_way = self._under_way, None
        assert writing is not None
        self._tell(self._finish_sealing())
        self._make_valid(writing, lambda: decode(parts, self.names))

    def _make_valid(self, writing: _Writing, files: Callable[[], Files]) -> None:
        """The server's, soon, by its thread. files: what parts are, or why they are not."""
        if self.rank_state.link.is_server:
            seal = _Seal(
                directory=self.directory,
                temporary=self._parts.temporary(writing.round),
                keep_last=self.keep_last,
                best=self.best,
                gone=self._gone(),
                reuses_spare=self._parts.by_server,
                round=writing.round,
                progress=writing.progress,
                about=self.about,
            )
            self._sealing = self._thread.submit(seal.run, files)

    def complete(self) -> str | None:
        """Collective. Wait until the last one is valid. Gives what was in the way, the same on
        every rank, and does not say it."""
        problem = self._wait_for_parts()
        self._parts.forget_ahead()
        try:
            self.rank_state.link.from_server(self._finish)
        except AgreedError as error:
            problem = str(error)
        return problem

    def give_up(self) -> None:
        """Collective. Some rank could not write its part."""
        self._tell(self._wait_for_parts())

    def abandon(self) -> None:
        """Collective: what is being written will not be whole."""
        self._parts.forget_ahead()
        writing, self._under_way = self._under_way, None
        if writing is not None:
            self._problem(writing)
        self._tell(self._finish_sealing())
        self.rank_state.link.barrier()
        self.rank_state.link.from_server(self._sweep)

    def _wait_for_parts(self) -> str | None:
        """Collective. The slow way, where a round's numbers have not told yet that all are there.
        Gives what was in the way, the same on every rank."""
        writing = self._under_way
        if writing is None:
            return None
        try:
            self.rank_state.link.agree(self._problem(writing))
        except AgreedError as error:
            self._under_way = None
            shutil.rmtree(self._parts.temporary(writing.round), ignore_errors=True)
            return f"no checkpoint of round {writing.round}: {error}"
        part = encode(writing.files.result(), self.names)
        self.seal(self.rank_state.link.sum(part.ravel()).reshape(part.shape))
        return None

    def _finish_sealing(self) -> str | None:
        """The server's: wait for the one before, and give what was in its way."""
        sealing, self._sealing = self._sealing, None
        problem = None if sealing is None else sealing.exception()
        if problem is None or isinstance(problem, UserError):
            return None if problem is None else str(problem)
        raise problem

    def _problem(self, writing: _Writing) -> str | None:
        """Wait for the end of this rank's part, and give what was in the way."""
        problem = writing.files.exception()
        if isinstance(problem, OSError):
            path = self._parts.temporary(writing.round)
            return f"{path} cannot be written: {problem.strerror}"
        if problem is not None:
            raise problem
        return None

    def _tell(self, problem: str | None) -> None:
        if problem is not None:
            self.log(problem)

    def _finish(self) -> None:
        problem = self._finish_sealing()
        shutil.rmtree(self.directory / SPARE, ignore_errors=True)
        if problem is not None:
            raise UserError(problem)

    def _gone(self) -> list[str]:
        """Files of devices whose rank has died."""
        link = self.rank_state.link
        devices = range(1, self.rank_state.participation.devices + 1) if link.lost else ()
        return [device_file(k) for k in devices if link.rank_of(k) is None]

    def _sweep(self) -> None:
        """Remove what a killed job left half written. Raises UserError where it cannot."""
        with writing(self.directory):
            self.directory.mkdir(exist_ok=True)
            for path in self.directory.glob(".round_*"):
                if path.is_symlink() or path.is_file():
                    path.unlink()
                else:
                    shutil.rmtree(path)


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """One rank's part of a checkpoint on its way to disk."""

    round: int
    progress: str
    files: Future[Files]


@dataclass(frozen=True, kw_only=True)
class _Seal:
    """The server's part: a manifest, and the name that makes all parts together a checkpoint."""

    directory: Path
    temporary: Path
    keep_last: int
    best: int | None
    gone: list[str]
    reuses_spare: bool
    round: int
    progress: str
    about: Mapping[str, Any]

    def run(self, files: Callable[[], Files]) -> None:
        """Raises UserError, and leaves nothing of it, where the disk is in the way."""
        try:
            with writing(self.directory):
                self._seal(files())
        except UserError as error:
            shutil.rmtree(self.temporary, ignore_errors=True)
            raise UserError(f"no checkpoint of round {self.round}: {error}") from None

    def _seal(self, files: Files) -> None:
        carried, lost = self._carry_over()
        final = self.directory / checkpoint_name(self.round)
        manifest = self.temporary / MANIFEST
        has_names = manifest.exists()  # as the checkpoint that it once was, which lasts
        told = {
            "round": self.round,
            "progress": json.loads(self.progress),
            "files": {**files, **carried},
            "lost": lost,
            **self.about,
        }
        write_synced(manifest, json.dumps(told).encode())
        if not has_names:
            sync(self.temporary)
        aside = None
        if final.exists():  # the same round again, where the first was damaged
            aside = self.directory / f".{final.name}.old"
            os.replace(final, aside)
        os.replace(self.temporary, final)
        sync(self.directory)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        kept = None if self.best is None else checkpoint_name(self.best)
        # Those of later rounds are damaged, or the run would not have gone back before them.
        there = checkpoints_of(self.directory.parent)
        for old in there[: there.index(final) + 1][: -self.keep_last]:
            if old.name != kept:
                self._retire(old)

    def _retire(self, old: Path) -> None:
        """Remove a checkpoint. Its files serve once more, where nobody else has a hold of them."""
        spare = self.directory / SPARE
        if self.reuses_spare and not spare.exists():
            os.replace(old, spare)  # from here on nobody finds it
            files = list(spare.iterdir())
            named = {path.name for path in files} == {MANIFEST, TOGETHER}
            if named and all(map(is_ours_alone, files)):
                return
            old = spare
        shutil.rmtree(old)

    def _carry_over(self) -> tuple[Files, list[str]]:
        """Take the files of devices whose rank has died from the checkpoint before. Gives what they
        are, and the names of those that it has not."""
        if not self.gone:
            return {}, []
        before = checkpoints_of(self.directory.parent)[-1:]
        manifests = [read_manifest(checkpoint) for checkpoint in before]
        there = {name for manifest in manifests for name in manifest.files}
        carried = {}
        for name in sorted(there.intersection(self.gone)):
            content = read_content(manifests[0], name)
            write_synced(self.temporary / name, content)
            carried[name] = fingerprint(content)
        return carried, [name for name in self.gone if name not in carried]


def encode(files: Files, names: Sequence[str]) -> NDArray[np.float64]:
    """What parts are, as numbers that ranks can add up: a row a name, of zeros where it is not
    among the files, else bytes and the SHA-256 in pieces that float64 holds exactly."""
    table = np.zeros((len(names), 1 + _PIECES))
    for name, about in files.items():
        row = table[names.index(name)]
        row[0] = about["bytes"]
        row[1:] = np.frombuffer(bytes.fromhex(about["sha256"]), ">u4")
    return table


def decode(table: NDArray[np.float64], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The reverse of `encode`."""
    return {
        name: {"bytes": int(row[0]), "sha256": row[1:].astype(">u4").tobytes().hex()}
        for row, name in zip(table, names, strict=True)
        if row[0]
    }
