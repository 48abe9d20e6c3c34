"""Checkpoints: `checkpoints/round_NNNNNN/`, complete or absent, a file a device and one for the
server.

A file per device and not per rank, so that a run can go on with other ranks. Loaded with
weights_only: a checkpoint is data and cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan_mpi.cluster.device import Device
from fedgan_mpi.cluster.link import AgreedError
from fedgan_mpi.cluster.node import Node
from fedgan_mpi.cluster.server import Server
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_whole, sync, write_synced
from fedgan_mpi.run.stats import STATS

_MANIFEST = "checkpoint.json"
_PIECES = 8  # of 32 bits, in a SHA-256


def checkpoint_name(round: int) -> str:
    return f"round_{round:06d}"


def checkpoints_of(run: Path) -> list[Path]:
    """Those of a run, oldest first; a link is none."""
    found = [
        (int(match[1]), path)
        for path in (run / "checkpoints").glob("round_*")
        if (match := re.fullmatch(r"round_(\d{6,})", path.name))
        and path.is_dir()
        and not path.is_symlink()
    ]
    return [path for _, path in sorted(found)]


class Checkpoints:
    """Those that a job writes. Training waits for a copy in memory and no longer: a thread brings
    each rank's part to disk, what the parts are goes with the numbers of a later round, and a
    thread of the server's makes the whole valid."""

    def __init__(
        self,
        node: Node,
        run: Path,
        *,
        keep_last: int,
        about: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        """Collective. about: JSON for every manifest: configuration, shards, versions. say: takes
        what was in the way of a checkpoint; those before it stay then."""
        self.node, self.directory = node, run / "checkpoints"
        self.keep_last, self.about, self.say = keep_last, about, say
        self.best: int | None = None
        """Round whose checkpoint is kept however old it is."""
        self.names = ["server.pt", *map(_device_file, range(1, node.participation.devices + 1))]
        self._under_way: _Writing | None = None
        self._sealing: _Sealing | None = None
        node.link.from_server(lambda: _sentence(self._sweep, self.directory))

    def begin(self, round: int, progress: Mapping[str, Any]) -> None:
        """Collective. Copy all that `round` finished rounds left behind, and begin to write it.

        progress: JSON, the server's; what the train loop itself must remember.
        """
        self._tell(self._wait_for_parts())
        self._under_way = _Writing(
            round=round,
            progress=json.dumps(progress),
            temporary=self.directory / f".{checkpoint_name(round)}.tmp",
            contents=_copy(self.node),
            record=self.directory.parent / STATS if self.node.link.is_server else None,
        )
        self._under_way.start()

    @property
    def waits(self) -> bool:
        """Whether parts are to be sealed; the same on every rank."""
        return self._under_way is not None

    def tell(self) -> tuple[bool, bool, NDArray[np.float64]]:
        """Of this rank's part: whether it is still on its way to disk, whether that failed, and
        what it is, to be added up with the other ranks' for `seal`."""
        writing = self._under_way
        if writing is None or writing.is_alive():
            return writing is not None, False, encode({}, self.names)
        return False, writing.problem is not None, encode(writing.files, self.names)

    def seal(self, parts: NDArray[np.float64]) -> None:
        """All parts are on disk, and all ranks have the sum of what they told: the server makes
        the checkpoint valid."""
        writing, self._under_way = self._under_way, None
        assert writing is not None
        if not self.node.link.is_server:
            return
        self._tell(self._finish_sealing())
        self._sealing = _Sealing(self, writing, decode(parts, self.names))
        self._sealing.start()

    def complete(self) -> str | None:
        """Collective. Wait until the last one is valid. Gives what was in the way, the same on
        every rank, and does not say it."""
        problem = self._wait_for_parts()
        try:
            self.node.link.from_server(self._raise_problem)
        except AgreedError as error:
            problem = str(error)
        return problem

    def give_up(self) -> None:
        """Collective. Some rank could not write its part."""
        self._tell(self._wait_for_parts())

    def abandon(self) -> None:
        """Collective: what is being written will not be whole."""
        writing, self._under_way = self._under_way, None
        if writing is not None:
            writing.join()
        self._tell(self._finish_sealing())
        self.node.link.barrier()
        self.node.link.from_server(lambda: _sentence(self._sweep, self.directory))

    def _wait_for_parts(self) -> str | None:
        """Collective. The slow way, where a round's numbers have not told yet that all are there.
        Gives what was in the way, the same on every rank."""
        writing = self._under_way
        if writing is None:
            return None
        writing.join()
        try:
            self.node.link.agree(writing.problem)
        except AgreedError as error:
            self._under_way = None
            shutil.rmtree(writing.temporary, ignore_errors=True)
            return f"no checkpoint of round {writing.round}: {error}"
        part = encode(writing.files, self.names)
        self.seal(self.node.link.sum(part.ravel()).reshape(part.shape))
        return None

    def _finish_sealing(self) -> str | None:
        """The server's: wait for the one before, and give what was in its way."""
        sealing, self._sealing = self._sealing, None
        if sealing is None:
            return None
        sealing.join()
        return sealing.problem

    def _tell(self, problem: str | None) -> None:
        if problem is not None:
            self.say(problem)

    def _raise_problem(self) -> None:
        problem = self._finish_sealing()
        if problem is not None:
            raise UserError(problem)

    def _sweep(self) -> None:
        """Remove what a killed job left half written."""
        self.directory.mkdir(exist_ok=True)
        for path in self.directory.glob(".round_*"):
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path)


class _Writing(threading.Thread):
    """One rank's part of a checkpoint on its way to disk."""

    def __init__(
        self,
        *,
        round: int,
        progress: str,
        temporary: Path,
        contents: dict[str, BytesIO],
        record: Path | None,
    ) -> None:
        """record: what the run has told of its rounds, which must last as long as they do; the
        server's."""
        super().__init__(name="checkpoint")
        self.round, self.progress, self.temporary = round, progress, temporary
        self.contents, self.record = contents, record
        self.files: dict[str, dict[str, Any]] = {}
        self.problem: str | None = "its thread ended early"  # until it has not

    def run(self) -> None:
        try:
            self.temporary.mkdir(exist_ok=True)
            for name, buffer in self.contents.items():
                content = buffer.getbuffer()
                write_synced(self.temporary / name, content)
                sha256 = hashlib.sha256(content).hexdigest()
                self.files[name] = {"bytes": len(content), "sha256": sha256}
            if self.record is not None:
                sync(self.record)
            self.problem = None
        except OSError as error:
            self.problem = f"{self.temporary} cannot be written: {error.strerror}"
        self.contents = {}


class _Sealing(threading.Thread):
    """The server's part: a manifest, and the name that makes all parts together a checkpoint."""

    def __init__(
        self, checkpoints: Checkpoints, writing: _Writing, files: dict[str, dict[str, Any]]
    ) -> None:
        super().__init__(name="seal")
        node = checkpoints.node
        self.directory, self.temporary = checkpoints.directory, writing.temporary
        self.keep_last, self.best = checkpoints.keep_last, checkpoints.best
        self.round = writing.round
        self.manifest: dict[str, Any] = {
            "round": writing.round,
            "progress": json.loads(writing.progress),
            "files": files,
            "lost": [],
            **checkpoints.about,
        }
        devices = range(1, node.participation.devices + 1) if node.link.lost else ()
        self.gone = [_device_file(k) for k in devices if node.link.rank_of(k) is None]
        self.problem: str | None = self._problem("its thread ended early")  # until it has not

    def run(self) -> None:
        try:
            _sentence(self._seal, self.directory)
            self.problem = None
        except UserError as error:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.problem = self._problem(error)

    def _problem(self, what: object) -> str:
        return f"no checkpoint of round {self.round}: {what}"

    def _seal(self) -> None:
        self._carry_over()
        temporary, final = self.temporary, self.directory / checkpoint_name(self.round)
        write_synced(temporary / _MANIFEST, json.dumps(self.manifest, indent=1).encode())
        sync(temporary)
        aside = self.directory / f".{final.name}.old"
        if final.exists():  # the same round again, where the first was damaged
            os.replace(final, aside)
        os.replace(temporary, final)
        sync(self.directory)
        shutil.rmtree(aside, ignore_errors=True)
        kept = None if self.best is None else checkpoint_name(self.best)
        # Those of later rounds are damaged, or the run would not have gone back before them.
        there = checkpoints_of(self.directory.parent)
        for old in there[: there.index(final) + 1][: -self.keep_last]:
            if old.name != kept:
                shutil.rmtree(old)

    def _carry_over(self) -> None:
        """Take the files of devices whose rank has died from the checkpoint before; those that it
        has not are lost."""
        if not self.gone:
            return
        before = checkpoints_of(self.directory.parent)[-1:]
        manifests = [read_manifest(checkpoint) for checkpoint in before]
        for name in self.gone:
            if manifests and name in manifests[0].files:
                shutil.copyfile(before[0] / name, self.temporary / name)
                sync(self.temporary / name)
                self.manifest["files"][name] = manifests[0].files[name]
            else:
                self.manifest["lost"].append(name)


def encode(files: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> NDArray[np.float64]:
    """What parts are, as numbers that ranks can add up: a row a name, of zeros where it is not
    among the files, else bytes and the SHA-256 in pieces that float64 holds exactly."""
    table = np.zeros((len(names), 1 + _PIECES))
    for row, name in zip(table, names, strict=True):
        if name in files:
            pieces = np.frombuffer(bytes.fromhex(files[name]["sha256"]), ">u4")
            row[0], row[1:] = files[name]["bytes"], pieces
    return table


def decode(table: NDArray[np.float64], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The reverse of `encode`."""
    return {
        name: {"bytes": int(row[0]), "sha256": row[1:].astype(">u4").tobytes().hex()}
        for row, name in zip(table, names, strict=True)
        if row[0]
    }


def _files_of(node: Node) -> dict[str, Device | Server]:
    """File name -> whose state it keeps, of this rank."""
    return {
        _device_file(owner.index) if isinstance(owner, Device) else "server.pt": owner
        for owner in node.owners
    }


def _device_file(device: int) -> str:
    return f"device_{device:04d}.pt"


def _copy(node: Node) -> dict[str, BytesIO]:
    """File name -> content, of this rank's devices and server."""
    contents = {}
    for name, owner in _files_of(node).items():
        contents[name] = BytesIO()
        torch.save(owner.state(), contents[name])
    return contents


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint says of itself."""

    path: Path
    """Of the checkpoint."""
    round: int
    progress: dict[str, Any]
    configuration: dict[str, Any]
    shards_sha256: str
    files: dict[str, Any]
    """Name -> bytes and sha256."""
    lost: list[str] = field(default_factory=list)
    """Names of devices that died before any checkpoint; they begin anew."""


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Raises UserError where it is missing or not one."""
    path = checkpoint / _MANIFEST
    keys = ("round", "progress", "configuration", "shards_sha256", "files")
    try:
        read = json.loads(read_whole(path, follow=False))
        manifest = CheckpointManifest(
            path=checkpoint, lost=read.get("lost", []), **{key: read[key] for key in keys}
        )
        if not isinstance(manifest.lost, list):
            raise TypeError
        tables = (manifest.progress, manifest.configuration, manifest.files)
        whole = all(isinstance(table, dict) for table in tables)
        if not whole or checkpoint.name != checkpoint_name(manifest.round):
            raise ValueError
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is missing or damaged") from None
    return manifest


def verify_checkpoint(node: Node, manifest: CheckpointManifest) -> None:
    """Raises UserError where a file of this rank's is missing or not what the checkpoint
    recorded."""
    for name in _files_of(node):
        if name not in manifest.lost:
            _read(manifest, name)


def load_checkpoint(node: Node, manifest: CheckpointManifest) -> None:
    """Put this rank's part back. Raises UserError where it is of other networks or devices."""
    try:
        for name, owner in _files_of(node).items():
            if name not in manifest.lost:
                state = _read(manifest, name)
                if not _alike(state, owner.state()):
                    raise ValueError
                owner.load_state(state)
    except (RuntimeError, TypeError, ValueError):  # a stream takes no state but its own
        raise UserError(f"{manifest.path} does not hold the states of this run") from None


def _alike(state: Any, like: Any) -> bool:
    """Whether a state is made of the same parts as another one."""
    if type(state) is not type(like):
        return False
    if isinstance(like, dict):
        return state.keys() == like.keys() and all(_alike(state[key], like[key]) for key in like)
    if isinstance(like, list):
        return len(state) == len(like) and all(map(_alike, state, like))
    if isinstance(like, torch.Tensor):
        return bool(
            state.shape == like.shape
            and state.dtype == like.dtype
            and state.layout == like.layout
            and not state.is_meta
        )
    return not isinstance(like, int) or 0 <= state < 2**53


def read_shown_generator(checkpoint: Path, whole_generator: int) -> torch.Tensor:
    """G of a checkpoint as it was shown: its first `whole_generator` numbers or their moving
    average. Raises UserError where the file is damaged or of other networks."""
    state = _read(read_manifest(checkpoint), "server.pt")
    shown = state.get("average", state.get("vector"))
    fits = isinstance(shown, torch.Tensor) and shown.ndim == 1 and len(shown) >= whole_generator
    if not fits:
        raise UserError(f"{checkpoint} holds other networks than its run's config.toml describes")
    assert isinstance(shown, torch.Tensor)
    return shown[:whole_generator]


def _read(manifest: CheckpointManifest, name: str) -> dict[str, Any]:
    path, recorded = manifest.path / name, manifest.files.get(name)
    try:
        content = read_whole(path, follow=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if found != recorded:
        raise UserError(f"{path} is not what its checkpoint recorded")
    try:
        state = torch.load(BytesIO(content), weights_only=True)
    except Exception:  # of a hostile file torch raises whatever its parser stumbled over
        state = None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of this program")
    return state


def _sentence(act: Any, path: Path) -> None:
    try:
        act()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
