"""How the states of ranks come to disk: copied at once, and written by a thread.

Each rank writes its own, but for small states of ranks that share the cores of one machine: they
copy into memory that they share, and one thread of the server's writes it as one file. With a
thread for each, training would wait for what threads cost, and with a file for each, for what disks
do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedgan_mpi.checkpoint.format import (
    SERVER,
    TOGETHER,
    checkpoint_name,
    device_file,
    files_of,
    fingerprint,
)
from fedgan_mpi.checkpoint.packing import PackedState
from fedgan_mpi.comm.link import AgreedError
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.files import sync, sync_content, write_over
from fedgan_mpi.run.stats import STATS

Files = Mapping[str, Mapping[str, Any]]
"""Name -> what a manifest says of it."""

SMALL = 16 * 2**20
"""Bytes of all states together, which one thread writes in a few milliseconds."""
SPARE = ".round_spare.tmp"
"""Beside checkpoints, one that is no longer kept: to write over files costs a third of new ones."""


class Parts(ABC):
    """What a rank copies and writes of one checkpoint after the other."""

    by_server = False
    """Whether the server's thread writes them all, over the spare, and nobody else can fail."""

    def __init__(self, rank_state: RankState, thread: Executor, run: Path) -> None:
        self.rank_state, self.thread, self.run = rank_state, thread, run

    def temporary(self, round: int) -> Path:
        """Where a checkpoint is written."""
        return self.run / "checkpoints" / f".{checkpoint_name(round)}.tmp"

    @abstractmethod
    def begin_ahead(self, round: int) -> None:
        """All do, with their part of the last of so many rounds behind them, after which a
        checkpoint is planned."""

    @abstractmethod
    def begin(self, round: int) -> Future[Files]:
        """Collective, after that round or an unplanned one; on the server, what was written before
        is on disk. Copy this rank's states and begin to write. Gives what it writes, in a while."""

    @abstractmethod
    def forget_ahead(self) -> None:
        """Collective. The checkpoint that was planned does not come."""

    def _states(self) -> dict[str, dict[str, Any]]:
        """File name -> state, of this rank."""
        return {name: owner.state() for name, owner in files_of(self.rank_state).items()}


class OwnPart(Parts):
    """Each rank writes what it has copied."""

    def __init__(self, rank_state: RankState, thread: Executor, run: Path) -> None:
        super().__init__(rank_state, thread, run)
        self._contents: dict[str, PackedState] = {}
        """File name -> content, of a rank that keeps one state: filled anew each time."""
        self._last: Future[Files] | None = None
        self._ahead: tuple[int, Future[Files]] | None = None

    def begin_ahead(self, round: int) -> None:
        # A device rank waits for the server now: its part is ready, and its core may be idle.
        if not self.rank_state.link.is_server and (self._last is None or self._last.done()):
            self._ahead = round, self._copy(round)

    def begin(self, round: int) -> Future[Files]:
        ahead, self._ahead = self._ahead, None
        self._last = self._copy(round) if ahead is None else ahead[1]
        return self._last

    def forget_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            round, files = ahead
            files.exception()
            shutil.rmtree(self.temporary(round), ignore_errors=True)

    def _copy(self, round: int) -> Future[Files]:
        contents = self._contents
        for name, state in self._states().items():
            if name in contents:
                contents[name].fill(state)
            else:
                contents[name] = PackedState(state)
        if len(contents) > 1:  # many devices: their memory is their moments' alone
            self._contents = {}
        record = self.run / STATS if self.rank_state.link.is_server else None
        return self.thread.submit(_write_own, self.temporary(round), contents, record)


class Room:
    """Shared memory for one rank's packed state, with its SHA-256 behind it."""

    DIGEST = hashlib.sha256().digest_size

    def __init__(self, memory: memoryview, place: slice) -> None:
        self._start, mine = place.start, memory[place]
        self.content, self._digest = mine[: -self.DIGEST], mine[-self.DIGEST :]

    def sign(self) -> None:
        """The content is whole."""
        self._digest[:] = hashlib.sha256(self.content).digest()

    @property
    def about(self) -> dict[str, Any]:
        """What a manifest says of it, once it is signed."""
        place = {"at": self._start, "bytes": len(self.content)}
        return {**place, "sha256": self._digest.hex()}


class SharedParts(Parts):
    """The server writes what all have copied, into three memories in turn: the one before is being
    written, and where a rank is a round ahead of the server, the one before that may be, too."""

    by_server = True

    def __init__(self, rank_state: RankState, thread: Executor, run: Path, length: int) -> None:
        """Collective, where all ranks share one machine and keep one state at most. length: bytes
        of this rank's. Raises AgreedError where there is no room."""
        super().__init__(rank_state, thread, run)
        link = rank_state.link
        devices = range(1, rank_state.participation.devices + 1)
        hosts = {SERVER: 0, **{device_file(k): link.rank_of(k) for k in devices}}
        state = next(iter(self._states().values()), None)
        self._mine: list[tuple[PackedState, Room] | None] = []
        self._memories: list[tuple[memoryview, dict[str, Room]]] = []
        for _ in range(3):
            memory, places = link.shared_rooms(length + Room.DIGEST)
            rooms = [Room(memory, place) for place in places]
            named = {name: rooms[rank] for name, rank in hosts.items() if rank is not None}
            self._memories.append((memory, named))
            mine = rooms[link.rank]
            self._mine.append(
                None if state is None else (PackedState(state, into=mine.content), mine)
            )
        self._turn = 0
        self._is_copied = False
        self._nothing: Future[Files] = Future()
        self._nothing.set_result({})

    def begin_ahead(self, round: int) -> None:
        self._copy()

    def begin(self, round: int) -> Future[Files]:
        if not self._is_copied:
            self._copy()
            self.rank_state.link.barrier()
        memory, rooms = self._memories[self._turn]
        self._turn, self._is_copied = (self._turn + 1) % len(self._memories), False
        if not self.rank_state.link.is_server:
            return self._nothing
        return self.thread.submit(
            _write_together, self.temporary(round), memory, rooms, self.run / STATS
        )

    def forget_ahead(self) -> None:
        self._is_copied = False

    def _copy(self) -> None:
        mine = self._mine[self._turn]
        if mine is not None:
            packed, room = mine
            (owner,) = self.rank_state.owners
            packed.fill(owner.state())
            # A device rank waits for the server now, and has its copy in its core's cache; the
            # server's own must wait for the thread.
            if not self.rank_state.link.is_server:
                room.sign()
        self._is_copied = True


def make_parts(rank_state: RankState, thread: Executor, run: Path) -> Parts:
    """Collective."""
    link = rank_state.link
    # A death would leave its part half copied.
    if link.transport == "shared_memory" and not rank_state.config.link.survive:
        length = _length(rank_state)
        if link.sum(np.array([length], np.float64))[0] <= SMALL:
            with suppress(AgreedError):  # no room
                return SharedParts(rank_state, thread, run, length)
    return OwnPart(rank_state, thread, run)


def _length(rank_state: RankState) -> int:
    """Bytes of this rank's state; too many where there are several."""
    if len(rank_state.owners) > 1:
        return SMALL + 1
    return sum(len(PackedState(owner.state()).content) for owner in rank_state.owners)


def _write_own(temporary: Path, contents: Mapping[str, PackedState], record: Path | None) -> Files:
    """Bring a rank's parts to disk, and with the server's what the run has told of its rounds, as
    it must last as long as they do."""
    temporary.mkdir(exist_ok=True)
    for name, packed in contents.items():
        write_over(temporary / name, packed.content)
    files = {name: fingerprint(packed.content) for name, packed in contents.items()}
    for name in files:  # they are on their way together
        sync_content(temporary / name)
    if record is not None:
        sync(record)
    return files


def _write_together(
    temporary: Path, memory: memoryview, rooms: Mapping[str, Room], record: Path
) -> Files:
    """Bring all parts to disk as one file, over the spare one where there is one, and what the run
    has told."""
    with suppress(OSError):  # there is none
        os.rename(temporary.with_name(SPARE), temporary)
    temporary.mkdir(exist_ok=True)
    rooms[SERVER].sign()
    write_over(temporary / TOGETHER, memory)
    sync_content(temporary / TOGETHER)
    sync(record)
    return {name: room.about for name, room in rooms.items()}
