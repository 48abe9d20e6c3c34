"""A checkpoint holds the states of all ranks at `begin`, or it is absent."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_states import equal, states
from toys import play, toy_algorithm, toy_config, toy_shards

from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.checkpoint import sealing, writer
from fedgan_mpi.checkpoint.format import (
    checkpoints_of,
    load_states,
    read_manifest,
    read_states,
)
from fedgan_mpi.checkpoint.writer import CheckpointWriter
from fedgan_mpi.comm.link import Link
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.run.stats import STATS

pytestmark = pytest.mark.mpi(min_size=2)

ABOUT = {"configuration": {}, "shards_sha256": ""}
Job = tuple[Algorithm, CheckpointWriter, list[str]]


@pytest.fixture(params=["shared_memory", "mpi", "hosting"])
def job(request, mpi_tmp_path) -> Job:
    """An algorithm, its checkpoint writer, and the messages that the writer has logged.

    hosting: the first device ranks host two devices.
    """
    hosting = request.param == "hosting"
    link = Link(transport="mpi" if hosting else request.param)
    devices = max(1, link.device_ranks) + hosting
    algorithm = toy_algorithm(link, toy_config(), toy_shards([20] * devices))
    run, messages = Path(mpi_tmp_path), []
    if link.is_server:
        (run / STATS).touch()
    checkpoints = CheckpointWriter(
        algorithm.rank_state, run, keep_last=1, about=ABOUT, log=messages.append
    )
    return algorithm, checkpoints, messages


def begin(checkpoints: CheckpointWriter, round: int) -> None:
    checkpoints.begin(round, {"round": round})


def check_only_checkpoint(
    rank_state: RankState,
    checkpoints: CheckpointWriter,
    round: int,
    expected: dict[str, torch.Tensor],
) -> None:
    """Check the manifest and the files of the only checkpoint, load it and compare states."""
    (checkpoint,) = checkpoints_of(checkpoints.run)
    assert not list(checkpoints.directory.glob(".*"))
    manifest = read_manifest(checkpoint)
    assert manifest.round == round and manifest.progress == {"round": round}
    assert list(manifest.files) == checkpoints.names
    assert {path.name for path in checkpoint.iterdir()} == {"checkpoint.json", *manifest.files}
    load_states(rank_state, manifest, read_states(rank_state, manifest))
    assert equal(states(rank_state), expected)
    rank_state.link.barrier()


def delayed(act: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.03)
        return act(*arguments)

    return slow


def failing(part: str) -> Callable[[Path, bytes], None]:
    """Return `write_synced` for a disk that is full for paths that contain `part`."""
    write_synced = writer.write_synced

    def write(path: Path, content: bytes) -> None:
        if part in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_synced(path, content)

    return write


# ------------------------------------------------------------ content


@pytest.mark.parametrize("slow", ["disk", "copy"])
def test_a_checkpoint_holds_the_states_at_begin(job, slow, monkeypatch):
    """Neither a slow disk nor ranks that copy late change its content."""
    algorithm, checkpoints, messages = job
    rank_state = algorithm.rank_state
    if slow == "disk":
        monkeypatch.setattr(writer, "write_synced", delayed(writer.write_synced))
    elif not rank_state.link.is_server:
        monkeypatch.setattr(writer, "local_files", delayed(writer.local_files))
    for round in range(1, 4):
        play(algorithm, 1, start=round - 1)
        expected = states(rank_state)
        begin(checkpoints, round)
        play(algorithm, 1, start=round)  # while the checkpoint is written
    assert checkpoints.complete() is None
    assert not equal(states(rank_state), expected)
    check_only_checkpoint(rank_state, checkpoints, 3, expected)
    assert messages == []


def test_checkpoints_one_after_the_other_do_not_mix(job, monkeypatch):
    algorithm, checkpoints, messages = job
    rank_state, checkpoints.keep_last = algorithm.rank_state, 9
    monkeypatch.setattr(writer, "write_synced", delayed(writer.write_synced))
    play(algorithm, 1)
    expected = []
    for round in range(1, 5):
        for device in rank_state.devices:
            device.batches.drawn += 1
        expected.append(states(rank_state))
        begin(checkpoints, round)
    assert checkpoints.complete() is None
    found = checkpoints_of(checkpoints.run)
    assert len(found) == len(expected)
    for checkpoint, one in zip(found, expected, strict=True):
        manifest = read_manifest(checkpoint)
        load_states(rank_state, manifest, read_states(rank_state, manifest))
        assert equal(states(rank_state), one)
    rank_state.link.barrier()
    assert messages == []


# ------------------------------------------------------------ complete or absent


def test_a_checkpoint_is_sealed_with_the_sum_of_the_ranks_tables(job):
    algorithm, checkpoints, messages = job
    play(algorithm, 1)
    expected = states(algorithm.rank_state)
    assert checkpoints.local_status() == (False, False)
    begin(checkpoints, 1)
    while checkpoints.local_status()[0]:
        time.sleep(0.001)
    assert checkpoints.is_pending and checkpoints.local_status() == (False, False)
    assert not checkpoints_of(checkpoints.run)
    checkpoints.seal()
    assert not checkpoints.is_pending
    assert checkpoints.complete() is None
    check_only_checkpoint(algorithm.rank_state, checkpoints, 1, expected)
    manifest = json.loads((checkpoints.directory / "round_000001/checkpoint.json").read_text())
    assert manifest["format"] == 3
    assert messages == []


def test_an_abandoned_checkpoint_leaves_nothing(job):
    algorithm, checkpoints, messages = job
    play(algorithm, 1)
    begin(checkpoints, 1)
    checkpoints.abandon()
    algorithm.link.barrier()
    assert not checkpoints.is_pending and not list(checkpoints.directory.iterdir())
    algorithm.link.barrier()
    play(algorithm, 1, start=1)
    expected = states(algorithm.rank_state)
    begin(checkpoints, 2)
    assert checkpoints.complete() is None
    check_only_checkpoint(algorithm.rank_state, checkpoints, 2, expected)
    assert messages == []


@pytest.mark.parametrize("full", ["device_0001.safetensors", "checkpoint.json"])
def test_a_full_disk_costs_one_checkpoint_and_keeps_the_previous_one(job, full, monkeypatch):
    algorithm, checkpoints, _ = job
    play(algorithm, 1)
    expected = states(algorithm.rank_state)
    begin(checkpoints, 1)
    assert checkpoints.complete() is None
    with monkeypatch.context() as patch:
        for module in (writer, sealing):
            patch.setattr(module, "write_synced", failing(f"round_000002.tmp/{full}"))
        play(algorithm, 1, start=1)
        begin(checkpoints, 2)
        problem = checkpoints.complete()
        assert problem is not None and problem.startswith("no checkpoint of round 2: ")
        assert "cannot be written: " in problem
        assert problem.endswith("No space left on device")
        assert full == "device_0001.safetensors" or f"/{full}: No space" in problem
    check_only_checkpoint(algorithm.rank_state, checkpoints, 1, expected)
    play(algorithm, 1, start=1)
    expected = states(algorithm.rank_state)
    begin(checkpoints, 3)
    assert checkpoints.complete() is None
    check_only_checkpoint(algorithm.rank_state, checkpoints, 3, expected)


def test_all_ranks_learn_that_one_cannot_write(job, monkeypatch):
    algorithm, checkpoints, messages = job
    monkeypatch.setattr(writer, "write_synced", failing("device_0001.safetensors"))
    begin(checkpoints, 1)
    while checkpoints.local_status()[0]:
        time.sleep(0.001)
    hosts_device_1 = any(device.index == 1 for device in algorithm.rank_state.devices)
    assert checkpoints.local_status()[1] == hosts_device_1
    checkpoints.drop_failed()
    (message,) = messages
    assert message.startswith("no checkpoint of round 1: ")
    algorithm.link.barrier()
    assert not checkpoints.is_pending and not list(checkpoints.directory.iterdir())
    algorithm.link.barrier()
    assert checkpoints.complete() is None


def test_a_failed_seal_is_logged_in_the_next_round(job, monkeypatch):
    algorithm, checkpoints, messages = job
    monkeypatch.setattr(sealing, "write_synced", failing("checkpoint.json"))
    begin(checkpoints, 1)
    while checkpoints.local_status()[0]:
        time.sleep(0.001)
    checkpoints.seal()
    deadline = time.monotonic() + 10
    while algorithm.link.is_server and not messages and time.monotonic() < deadline:
        checkpoints.local_status()
    assert len(messages) == algorithm.link.is_server
    assert all(line.startswith("no checkpoint of round 1: ") for line in messages)
    assert checkpoints.complete() is None
