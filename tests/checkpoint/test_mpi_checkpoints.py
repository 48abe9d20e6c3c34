"""What a checkpoint holds is what ranks had when it was begun, whoever writes it."""

from __future__ import annotations

import errno
import json
import mmap
import time
from collections.abc import Callable
from concurrent.futures import wait
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import play, toy_algorithm, toy_config, toy_shards

from fedgan_mpi import files
from fedgan_mpi.checkpoint import parts as checkpoint_parts
from fedgan_mpi.checkpoint.format import (
    TOGETHER,
    checkpoints_of,
    files_of,
    load_checkpoint,
    read_manifest,
)
from fedgan_mpi.checkpoint.packing import PackedState, unpack
from fedgan_mpi.checkpoint.parts import OwnPart, SharedParts, make_parts
from fedgan_mpi.checkpoint.writer import Checkpoints
from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.run.stats import STATS

pytestmark = pytest.mark.mpi(min_size=2)

WRITERS = {"shared_memory": SharedParts, "mpi": OwnPart}


def states(rank_state: RankState) -> dict[str, torch.Tensor]:
    """Copies of all that this rank's checkpoint must hold."""
    return {
        f"{name} {leaf}": tensor
        for name, owner in files_of(rank_state).items()
        for leaf, tensor in unpack(PackedState(owner.state()).content).items()
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=WRITERS)
def job(request, mpi_tmp_path):
    """An algorithm, its checkpoints, and what they said."""
    link = Link(transport=request.param)
    shards = toy_shards([20] * max(1, link.device_ranks))
    algorithm = toy_algorithm(link, toy_config(), shards)
    run, said = Path(mpi_tmp_path), []
    if link.is_server:
        (run / STATS).touch()
    checkpoints = Checkpoints(algorithm.rank_state, run, keep_last=1, about=ABOUT, log=said.append)
    assert type(checkpoints._parts) is WRITERS[request.param]
    return algorithm, checkpoints, said


ABOUT = {"configuration": {}, "shards_sha256": ""}


def keep(checkpoints: Checkpoints, round: int, *, ahead: bool) -> None:
    if ahead:
        checkpoints.begin_ahead(round)
        checkpoints.rank_state.link.barrier()  # a round's numbers are added up
    checkpoints.begin(round, {"round": round})


def file_of(checkpoints: Checkpoints, name: str) -> str:
    """In which file of a checkpoint a part stands."""
    return TOGETHER if isinstance(checkpoints._parts, SharedParts) else name


def holds(
    rank_state: RankState, checkpoints: Checkpoints, round: int, then: dict[str, torch.Tensor]
) -> None:
    """The one checkpoint that is there, its files, and what is read of them."""
    (checkpoint,) = checkpoints_of(checkpoints.directory.parent)
    manifest = read_manifest(checkpoint)
    assert manifest.round == round and manifest.progress == {"round": round}
    there = {path.name for path in checkpoint.iterdir()}
    assert list(manifest.files) == checkpoints.names
    assert there == {"checkpoint.json", *(file_of(checkpoints, name) for name in manifest.files)}
    load_checkpoint(rank_state, manifest)
    assert equal(states(rank_state), then)
    rank_state.link.barrier()


@pytest.mark.parametrize("ahead", [True, False], ids=["planned", "unplanned"])
def test_a_checkpoint_holds_what_was_when_it_was_begun(job, ahead, monkeypatch):
    """However long the disk takes, and however late some rank copies its part."""
    algorithm, checkpoints, said = job
    rank_state = algorithm.rank_state
    parts = checkpoints._parts
    if ahead:
        monkeypatch.setattr(checkpoint_parts, "write_over", later(checkpoint_parts.write_over))
    elif not rank_state.link.is_server:
        monkeypatch.setattr(parts, "_states", later(parts._states))
    for round in range(1, 4):
        play(algorithm, 1, start=round - 1)
        then = states(rank_state)
        keep(checkpoints, round, ahead=ahead)
        play(algorithm, 1, start=round)  # goes on while it is written
    checkpoints.begin_ahead(4)
    assert checkpoints.complete() is None
    assert not equal(states(rank_state), then)
    holds(rank_state, checkpoints, 3, then)
    assert not list(checkpoints.directory.glob(".*"))
    assert said == []


def test_a_rank_that_is_a_round_ahead_does_not_write_over_what_is_being_written(job, monkeypatch):
    """As one may be that takes no part in a round and waits for nobody in it."""
    algorithm, checkpoints, said = job
    rank_state, checkpoints.keep_last = algorithm.rank_state, 9
    for slow in ("write_over", "sync_content"):
        monkeypatch.setattr(checkpoint_parts, slow, later(getattr(checkpoint_parts, slow)))
    play(algorithm, 1)
    then = []
    for round in range(1, 5):
        for device in rank_state.devices:
            device.batches.drawn += 1
        then.append(states(rank_state))
        keep(checkpoints, round, ahead=True)  # and the next one at once
    assert checkpoints.complete() is None
    there = checkpoints_of(checkpoints.directory.parent)
    assert len(there) == len(then)
    for checkpoint, expected in zip(there, then, strict=True):
        load_checkpoint(rank_state, read_manifest(checkpoint))
        assert equal(states(rank_state), expected)
    rank_state.link.barrier()
    assert said == []


def later(act: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.03)
        return act(*arguments)

    return slow


def test_a_planned_checkpoint_that_does_not_come_leaves_nothing(job):
    algorithm, checkpoints, _ = job
    play(algorithm, 1)
    checkpoints.begin_ahead(1)
    assert checkpoints.complete() is None
    play(algorithm, 1, start=1)
    then = states(algorithm.rank_state)
    keep(checkpoints, 2, ahead=False)
    assert checkpoints.complete() is None
    assert not list(checkpoints.directory.glob(".*"))
    holds(algorithm.rank_state, checkpoints, 2, then)


def test_one_process_makes_valid_what_it_has_written_alone(job):
    """Nothing more is exchanged; where ranks write their own, all must tell first."""
    algorithm, checkpoints, said = job
    play(algorithm, 1)
    then = states(algorithm.rank_state)
    keep(checkpoints, 1, ahead=True)
    alone = isinstance(checkpoints._parts, SharedParts)
    assert checkpoints.waits != alone
    assert (checkpoints.empty.size == 0) == alone
    if algorithm.link.is_server and alone:
        assert checkpoints._finish_sealing() is None
    there = checkpoints_of(checkpoints.directory.parent) if algorithm.link.is_server else []
    assert bool(there) == (alone and algorithm.link.is_server)
    assert checkpoints.complete() is None
    holds(algorithm.rank_state, checkpoints, 1, then)
    assert said == []


def failing(part: str) -> Callable[..., None]:
    honest = files.write_over

    def write_over(path, content):
        if part in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        honest(path, content)

    return write_over


def test_a_part_that_cannot_be_written_costs_the_checkpoint_and_not_the_one_before(
    job, monkeypatch
):
    algorithm, checkpoints, _ = job
    play(algorithm, 1)
    then = states(algorithm.rank_state)
    keep(checkpoints, 1, ahead=True)
    assert checkpoints.complete() is None
    with monkeypatch.context() as full:
        for module in ("files", "run.checkpoint_parts"):
            part = file_of(checkpoints, "device_0001.safetensors")
            full.setattr(f"fedgan_mpi.{module}.write_over", failing(f"round_000002.tmp/{part}"))
        play(algorithm, 1, start=1)
        keep(checkpoints, 2, ahead=True)
        told = checkpoints.complete()
        assert told is not None and told.startswith("no checkpoint of round 2: ")
        assert told.endswith("cannot be written: No space left on device")
    assert not list(checkpoints.directory.glob(".*"))
    holds(algorithm.rank_state, checkpoints, 1, then)
    play(algorithm, 1, start=1)
    then = states(algorithm.rank_state)
    keep(checkpoints, 3, ahead=True)
    assert checkpoints.complete() is None
    holds(algorithm.rank_state, checkpoints, 3, then)


def test_what_was_in_the_way_of_one_process_is_said_with_the_next_numbers(job, monkeypatch):
    """And not a checkpoint later. Where ranks write their own, it is among those numbers."""
    algorithm, checkpoints, said = job
    if not isinstance(checkpoints._parts, SharedParts):
        pytest.skip("each rank writes its own")
    monkeypatch.setattr(checkpoint_parts, "write_over", failing("round_000001.tmp"))
    keep(checkpoints, 1, ahead=True)
    if algorithm.link.is_server:
        wait([checkpoints._sealing])
        assert said == []
    checkpoints.tell()
    assert len(said) == algorithm.link.is_server
    assert all(line.startswith("no checkpoint of round 1: ") for line in said)
    assert checkpoints.complete() is None


def test_files_are_written_over_once_nobody_has_a_hold_of_them(job):
    """Not those of a checkpoint that is still there, nor what has another name or is mapped."""
    algorithm, checkpoints, _ = job
    link = algorithm.link
    backup = checkpoints.directory.parent / "backup"
    files_seen: list[int] = []
    for round in range(1, 8):
        play(algorithm, 1, start=round - 1)
        keep(checkpoints, round, ahead=True)
        checkpoints._wait_for_parts()
        if link.is_server:
            checkpoints._finish_sealing()
        link.barrier()
        name = file_of(checkpoints, "server.safetensors")
        path = checkpoints.directory / f"round_{round:06d}" / name
        files_seen.append(path.stat().st_ino)
        if link.is_server and round == 3:
            linked = path.read_bytes()
            backup.hardlink_to(path)
        if link.is_server and round == 4:
            read = path.read_bytes()
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        link.barrier()
    if isinstance(checkpoints._parts, SharedParts):
        assert files_seen[0] == files_seen[2] and files_seen[1] == files_seen[3]
    assert all(one != next for one, next in pairwise(files_seen))
    assert files_seen[2] not in files_seen[3:] and files_seen[3] not in files_seen[4:]
    if link.is_server:
        assert backup.read_bytes() == linked and mapped[:] == read
    assert checkpoints.complete() is None
    manifest = json.loads((checkpoints.directory / "round_000007/checkpoint.json").read_text())
    assert manifest["round"] == 7


def test_ranks_of_large_states_or_several_write_their_own(job, monkeypatch):
    algorithm, checkpoints, _ = job
    rank_state, parts = algorithm.rank_state, checkpoints._parts
    writer = type(parts)
    total = rank_state.link.sum(np.array([checkpoint_parts._length(rank_state)], np.float64))[0]
    for limit, expected in [(total, writer), (total - 1, OwnPart)]:
        monkeypatch.setattr(checkpoint_parts, "SMALL", int(limit))
        assert type(make_parts(rank_state, parts.thread, parts.run)) is expected
    hosting = toy_algorithm(
        rank_state.link, toy_config(), toy_shards([20] * (rank_state.link.size + 1))
    ).rank_state
    assert type(make_parts(hosting, parts.thread, parts.run)) is OwnPart
