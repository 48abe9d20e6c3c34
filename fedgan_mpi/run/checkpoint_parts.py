"""How the states of ranks come to disk: copied at once, and written by a thread.

Each rank writes its own, but for small states of ranks that share the cores of one machine: they
copy into memory that they share, and one thread of the server's writes for all. With a thread for
each, training would wait for what threads cost.
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

from fedgan_mpi.cluster.link import AgreedError
from fedgan_mpi.cluster.node import Node
from fedgan_mpi.files import sync, sync_content, write_over
from fedgan_mpi.run.checkpoint import SERVER, device_file, files_of
from fedgan_mpi.run.states import Packed

Files = Mapping[str, Mapping[str, Any]]
"""Name -> bytes and sha256."""

SMALL = 16 * 2**20
"""Bytes of all states together, which one thread hashes in 10 ms."""
SPARE = ".round_spare.tmp"
"""Beside checkpoints, one that is no longer kept: to write over files costs a third of new ones."""


class Parts(ABC):
    """What a rank copies and writes of one checkpoint after the other."""

    reuses = False
    """Whether it writes over the spare."""

    def __init__(self, node: Node, threads: Executor, record: Path) -> None:
        """record: what the run has told of its rounds, which must last as long as they do."""
        self.node, self.threads, self.record = node, threads, record

    @abstractmethod
    def begin_ahead(self, temporary: Path) -> None:
        """All do, with their part of a round behind them, after which a checkpoint is planned."""

    @abstractmethod
    def begin(self, temporary: Path) -> Future[Files]:
        """Collective, after that round or an unplanned one; what was written before is on disk.
        Copy this rank's states and begin to write. Gives what it writes, in a while."""

    @abstractmethod
    def forget_ahead(self) -> None:
        """Collective. The checkpoint that was planned does not come."""

    def _states(self) -> dict[str, dict[str, Any]]:
        """File name -> state, of this rank."""
        return {name: owner.state() for name, owner in files_of(self.node).items()}

    def _write(self, temporary: Path, contents: Mapping[str, Packed | memoryview]) -> Future[Files]:
        record = self.record if self.node.link.is_server else None
        return self.threads.submit(_write, temporary, contents, record, reuses=self.reuses)


class OwnPart(Parts):
    """Each rank writes what it has copied."""

    def __init__(self, node: Node, threads: Executor, record: Path) -> None:
        super().__init__(node, threads, record)
        self._contents: dict[str, Packed] = {}
        """File name -> content, of a rank that keeps one state: filled anew each time."""
        self._last: Future[Files] | None = None
        self._ahead: tuple[Path, Future[Files]] | None = None

    def begin_ahead(self, temporary: Path) -> None:
        # A device rank waits for the server now: its part is ready, and its core may be idle.
        if not self.node.link.is_server and (self._last is None or self._last.done()):
            self._ahead = temporary, self._copy(temporary)

    def begin(self, temporary: Path) -> Future[Files]:
        ahead, self._ahead = self._ahead, None
        self._last = self._copy(temporary) if ahead is None else ahead[1]
        return self._last

    def forget_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            temporary, files = ahead
            files.exception()
            shutil.rmtree(temporary, ignore_errors=True)

    def _copy(self, temporary: Path) -> Future[Files]:
        contents = self._contents
        for name, state in self._states().items():
            if name in contents:
                contents[name].fill(state)
            else:
                contents[name] = Packed(state)
        if len(contents) > 1:  # many devices: their memory is their moments' alone
            self._contents = {}
        return self._write(temporary, contents)


class SharedParts(Parts):
    """The server writes what all have copied. Rooms are two: the one before is being written."""

    reuses = True

    def __init__(self, node: Node, threads: Executor, record: Path, length: int) -> None:
        """Collective, where all ranks share one machine and keep one state at most. length: bytes
        of this rank's. Raises AgreedError where there is no room."""
        super().__init__(node, threads, record)
        link = node.link
        self._mine: list[Packed | None] = []
        self._everyones: list[dict[str, memoryview]] = []
        state = next(iter(self._states().values()), None)
        devices = range(1, node.participation.devices + 1)
        hosts = {device_file(k): link.rank_of(k) for k in devices}
        for _ in range(2):
            rooms = link.shared_rooms(length)
            self._mine.append(None if state is None else Packed(state, into=rooms[link.rank]))
            self._everyones.append(
                {SERVER: rooms[0], **{name: rooms[rank] for name, rank in hosts.items() if rank}}
            )
        self._turn = 0
        self._is_copied = False
        self._nothing: Future[Files] = Future()
        self._nothing.set_result({})

    def begin_ahead(self, temporary: Path) -> None:
        self._copy()

    def begin(self, temporary: Path) -> Future[Files]:
        if not self._is_copied:
            self._copy()
            self.node.link.barrier()
        everyones = self._everyones[self._turn]
        self._turn, self._is_copied = 1 - self._turn, False
        return self._write(temporary, everyones) if self.node.link.is_server else self._nothing

    def forget_ahead(self) -> None:
        self._is_copied = False

    def _copy(self) -> None:
        mine = self._mine[self._turn]
        if mine is not None:
            (state,) = self._states().values()
            mine.fill(state)
        self._is_copied = True


def make_parts(node: Node, threads: Executor, record: Path) -> Parts:
    """Collective."""
    link = node.link
    # A death would leave its part half copied.
    if link.road == "mailbox" and not node.config.link.survive:
        length = _length(node)
        if link.sum(np.array([length], np.float64))[0] <= SMALL:
            with suppress(AgreedError):  # no room
                return SharedParts(node, threads, record, length)
    return OwnPart(node, threads, record)


def _length(node: Node) -> int:
    """Bytes of this rank's state; too many where there are several."""
    if len(node.owners) > 1:
        return SMALL + 1
    return sum(len(Packed(owner.state()).content) for owner in node.owners)


def _write(
    temporary: Path,
    contents: Mapping[str, Packed | memoryview],
    record: Path | None,
    *,
    reuses: bool,
) -> Files:
    """Bring parts to disk, and with the server's the run's record."""
    if reuses:
        with suppress(OSError):  # there is none
            os.rename(temporary.with_name(SPARE), temporary)
    temporary.mkdir(exist_ok=True)
    files = {}
    for name, packed in contents.items():
        content = packed.content if isinstance(packed, Packed) else packed
        write_over(temporary / name, content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for name in files:  # they are on their way together
        sync_content(temporary / name)
    if record is not None:
        sync(record)
    return files
