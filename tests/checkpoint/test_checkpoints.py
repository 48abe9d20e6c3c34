"""States as bytes, and which checkpoints are kept; whole jobs are in test_jobs_survival.py."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fedgan_mpi.checkpoint.format import (
    checkpoint_name,
    checkpoints_of,
    read_content,
    read_manifest,
)
from fedgan_mpi.checkpoint.packing import PackedState, restore, unpack
from fedgan_mpi.checkpoint.writer import _Seal
from fedgan_mpi.errors import UserError


def state(drawn: int = 3, numbers: float = 1.0) -> dict:
    both = torch.arange(6.0) * numbers  # moments are halves of one vector
    return {
        "drawn": drawn,
        "stream": torch.arange(7, dtype=torch.uint8),
        "moments": [{"steps": 2, "first": both[:3], "second": both[3:]}],
        "own": [],
        "counts": [torch.tensor(5), torch.zeros(0)],
    }


def test_a_state_comes_back_and_its_bytes_can_be_filled_anew(tmp_path):
    packed = PackedState(state())
    place = packed.content
    packed.fill(state(drawn=4, numbers=2.0))
    assert packed.content is place
    back = restore(unpack(packed.content), state())
    assert back["drawn"] == 4 and back["moments"][0]["steps"] == 2 and back["own"] == []
    assert back["moments"][0]["second"].tolist() == [6.0, 8.0, 10.0]
    assert back["counts"][0].item() == 5 and len(back["counts"][1]) == 0
    path = tmp_path / "state.safetensors"
    path.write_bytes(packed.content)
    with safe_open(path, "pt") as file:  # others can read it, too
        assert file.get_tensor("moments.0.first").tolist() == [0.0, 2.0, 4.0]


def test_a_copy_does_not_follow_what_it_was_made_of():
    mine = state()
    packed = PackedState(mine)
    mine["moments"][0]["first"].fill_(9.0)
    assert restore(unpack(packed.content), state())["moments"][0]["first"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "other",
    [
        {**state(), "more": 1},
        {key: value for key, value in state().items() if key != "drawn"},
        {**state(), "stream": torch.arange(6, dtype=torch.uint8)},
        {**state(), "own": [torch.ones(1)]},
        state(drawn=-1),
        state(drawn=2**53),
    ],
    ids=["more", "less", "shorter", "another list", "below 0", "beyond counting"],
)
def test_a_state_of_other_parts_is_refused(other):
    with pytest.raises(ValueError):
        restore(unpack(PackedState(other).content), state())


ABOUT = {"configuration": {}, "shards_sha256": ""}
PROGRESS = {"images_seen": 3}


def seal(
    run: Path, round: int, *, keep_last: int, best: int | None = None, gone: tuple[str, ...] = ()
) -> list[int]:
    """Make a checkpoint valid; the rounds of those that are there then."""
    temporary = run / "checkpoints" / f".{checkpoint_name(round)}.tmp"
    temporary.mkdir()
    (temporary / "server.safetensors").write_bytes(b"anew")
    _Seal(
        directory=run / "checkpoints",
        temporary=temporary,
        keep_last=keep_last,
        best=best,
        gone=[*gone],
        reuses_spare=False,
        round=round,
        progress=json.dumps(PROGRESS),
        about=ABOUT,
    ).run(dict)
    return [int(path.name.removeprefix("round_")) for path in checkpoints_of(run)]


@pytest.fixture
def run(tmp_path) -> Path:
    for round in (5, 10, 25, 30):
        (tmp_path / "checkpoints" / checkpoint_name(round)).mkdir(parents=True)
    return tmp_path


def test_the_last_ones_are_those_before_and_not_damaged_ones_of_later_rounds(run):
    """A run that went back before 25 and 30 must not take them for its last two."""
    assert seal(run, 12, keep_last=2) == [10, 12, 25, 30]
    assert seal(run, 14, keep_last=2) == [12, 14, 25, 30]
    assert seal(run, 30, keep_last=2) == [25, 30]
    manifest = read_manifest(checkpoints_of(run)[-1])
    assert manifest.round == 30 and manifest.progress == PROGRESS
    assert [path.name for path in (run / "checkpoints").glob(".*")] == []


def test_the_best_is_kept_however_old_it_is(run):
    assert seal(run, 31, keep_last=1, best=10) == [10, 31]


@pytest.mark.parametrize("together", [True, False], ids=["of one file", "of its own"])
def test_the_dead_devices_state_is_that_of_the_checkpoint_before(run, together):
    """Wherever it stands there: a job of one machine may go on as one that survives."""
    before, name, content = (
        run / "checkpoints" / checkpoint_name(30),
        "device_0002.safetensors",
        b"2",
    )
    (before / ("states.bin" if together else name)).write_bytes(b"012" if together else content)
    told = {"bytes": 1, "sha256": hashlib.sha256(content).hexdigest()}
    files = {name: {**told, "at": 2} if together else told}
    manifest = {"round": 30, "progress": {}, **ABOUT, "files": files}
    (before / "checkpoint.json").write_text(json.dumps(manifest))
    gone = (name, "device_0003.safetensors")
    assert seal(run, 31, keep_last=1, gone=gone) == [31]
    manifest = read_manifest(run / "checkpoints" / checkpoint_name(31))
    assert manifest.lost == ["device_0003.safetensors"] and manifest.files == {name: told}
    assert read_content(manifest, name) == content
    (manifest.path / name).write_bytes(b"3")
    with pytest.raises(
        UserError, match=r"^no checkpoint of round 32: .*31/device_0002.* is not what"
    ):
        seal(run, 32, keep_last=1, gone=gone)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["round_000031"]
