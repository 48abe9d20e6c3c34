"""The order of system calls that makes files and checkpoints survive a loss of power.

Content is synced before the rename that makes it visible, and the directory after it. A rename
that reaches the disk before its content would leave an empty file with a valid name.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from fedgan_mpi.checkpoint import sealing
from fedgan_mpi.checkpoint.format import checkpoint_name, checkpoints_of
from fedgan_mpi.checkpoint.packing import PackedState
from fedgan_mpi.checkpoint.sealing import Seal
from fedgan_mpi.checkpoint.writer import write_files
from fedgan_mpi.files import complete_or_absent, write_complete, write_synced

Calls = list[tuple[str, ...]]


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Calls:
    """System calls with their paths, in order: writes, syncs, renames and removals."""
    recorded: Calls = []

    def name(path) -> str:
        return str(Path(path).relative_to(tmp_path))

    def record(module, function: str, describe) -> None:
        original = getattr(module, function)

        def call(*arguments, **options):
            recorded.append(describe(*arguments))
            return original(*arguments, **options)

        monkeypatch.setattr(module, function, call)

    def opened(descriptor: int) -> str:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        size = os.fstat(descriptor).st_size
        return name(path) if Path(path).is_dir() else f"{name(path)} of {size} bytes"

    record(os, "fsync", lambda descriptor: ("sync", opened(descriptor)))
    record(os, "replace", lambda old, new: ("rename", name(old), name(new)))
    record(os, "rename", lambda old, new: ("rename", name(old), name(new)))
    record(shutil, "rmtree", lambda path, *_: ("remove", name(path)))
    return recorded


# ------------------------------------------------------------ files


def test_a_file_is_synced_before_its_rename_and_its_directory_after(tmp_path, calls):
    write_complete(tmp_path / "file", b"content")
    temporary = f".file.{os.getpid()}.tmp"
    assert calls == [
        ("sync", f"{temporary} of 7 bytes"),
        ("rename", temporary, "file"),
        ("sync", "."),
    ]


def test_the_directory_of_a_links_target_is_synced(tmp_path, calls):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/file")
    write_complete(tmp_path / "link", b"content")
    temporary = f"far/.file.{os.getpid()}.tmp"
    assert calls == [
        ("sync", f"{temporary} of 7 bytes"),
        ("rename", temporary, "far/file"),
        ("sync", "far"),
    ]


def test_nothing_is_renamed_after_an_error(tmp_path, calls):
    with pytest.raises(ZeroDivisionError), complete_or_absent(tmp_path / "file"):
        raise ZeroDivisionError
    assert calls == []


def test_a_file_in_place_is_synced_with_its_whole_content(tmp_path, calls):
    write_synced(tmp_path / "file", bytes(100_000))
    assert calls == [("sync", "file of 100000 bytes")]


# ------------------------------------------------------------ checkpoints


def test_states_and_statistics_are_synced_before_they_are_reported(tmp_path, calls):
    """Ranks report their files to the server, which then writes the manifest."""
    (tmp_path / "stats.jsonl").write_text("{}\n")
    states = {f"{n}.safetensors": PackedState({"x": torch.zeros(n)}) for n in (1, 2)}
    sizes = {name: len(state.content) for name, state in states.items()}
    files = write_files(tmp_path / "parts", states, tmp_path / "stats.jsonl")
    assert {name: entry["bytes"] for name, entry in files.items()} == sizes
    assert calls == [
        ("sync", f"parts/1.safetensors of {sizes['1.safetensors']} bytes"),
        ("sync", f"parts/2.safetensors of {sizes['2.safetensors']} bytes"),
        ("sync", "stats.jsonl of 3 bytes"),
    ]


def seal(run: Path, round: int, keep_last: int) -> None:
    temporary = run / "checkpoints" / f".{checkpoint_name(round)}.tmp"
    temporary.mkdir(parents=True)
    Seal(
        directory=run / "checkpoints", temporary=temporary, round=round, progress={}, files={},
        about={}, lost=(), keep_last=keep_last, best=None,
    ).run()  # fmt: skip


@pytest.mark.parametrize("damaged", [False, True], ids=["new", "in place of a damaged one"])
def test_a_checkpoint_is_synced_renamed_and_then_older_ones_are_removed(tmp_path, calls, damaged):
    old, new = (f"checkpoints/{checkpoint_name(round)}" for round in (5, 10))
    (tmp_path / old).mkdir(parents=True)
    if damaged:
        (tmp_path / new).mkdir()
    seal(tmp_path, 10, keep_last=1)
    temporary, aside = ("checkpoints/.round_000010" + end for end in (".tmp", ".old"))
    size = (tmp_path / new / sealing.MANIFEST).stat().st_size
    expected = [
        ("sync", f"{temporary}/checkpoint.json of {size} bytes"),
        ("sync", temporary),
        *([("rename", new, aside)] if damaged else []),
        ("rename", temporary, new),
        ("sync", "checkpoints"),
        ("remove", old),
    ]
    assert [call for call in calls if call != ("remove", aside)] == expected
    assert calls.index(("sync", "checkpoints")) < calls.index(("remove", aside)) or not damaged
    assert [path.name for path in checkpoints_of(tmp_path)] == ["round_000010"]
