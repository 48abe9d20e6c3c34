"""Manifests of checkpoints: their content, and which checkpoints are kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fedgan_mpi.checkpoint.format import (
    checkpoint_name,
    checkpoints_of,
    encode_manifest,
    fingerprint,
    read_content,
    read_manifest,
)
from fedgan_mpi.checkpoint.sealing import Seal
from fedgan_mpi.errors import UserError

ABOUT = {"configuration": {}, "shards_sha256": ""}
PROGRESS = {"images_seen": 3}


def seal(
    run: Path, round: int, *, keep_last: int, best: int | None = None, lost: tuple[str, ...] = ()
) -> list[int]:
    """Complete a checkpoint with one file. Return the rounds of all checkpoints afterwards."""
    temporary = run / "checkpoints" / f".{checkpoint_name(round)}.tmp"
    temporary.mkdir()
    (temporary / "server.safetensors").write_bytes(b"new")
    Seal(
        directory=run / "checkpoints",
        temporary=temporary,
        round=round,
        progress=PROGRESS,
        files={},
        about=ABOUT,
        lost=lost,
        keep_last=keep_last,
        best=best,
    ).run()
    return [int(path.name.removeprefix("round_")) for path in checkpoints_of(run)]


@pytest.fixture
def run(tmp_path) -> Path:
    for round in (5, 10, 25, 30):
        (tmp_path / "checkpoints" / checkpoint_name(round)).mkdir(parents=True)
    return tmp_path


# ------------------------------------------------------------ checkpoints that are kept


def test_keep_last_counts_no_checkpoints_of_later_rounds(run):
    """A run that resumed before round 25 must not count its damaged checkpoints 25 and 30."""
    assert seal(run, 12, keep_last=2) == [10, 12, 25, 30]
    assert seal(run, 14, keep_last=2) == [12, 14, 25, 30]
    assert seal(run, 30, keep_last=2) == [25, 30]
    manifest = read_manifest(checkpoints_of(run)[-1])
    assert manifest.round == 30 and manifest.progress == PROGRESS
    assert [path.name for path in (run / "checkpoints").glob(".*")] == []


def test_the_best_checkpoint_is_kept(run):
    assert seal(run, 31, keep_last=1, best=10) == [10, 31]


# ------------------------------------------------------------ devices that have died


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_the_state_of_a_dead_device_is_copied_from_the_previous_checkpoint(run, packed):
    """Also from a checkpoint of format 1 that has all states in one file."""
    name, content = "device_0002.safetensors", b"2"
    entry = {"bytes": 1, "sha256": hashlib.sha256(content).hexdigest()}
    previous = run / "checkpoints" / checkpoint_name(30)
    (previous / ("states.bin" if packed else name)).write_bytes(b"012" if packed else content)
    files = {name: {**entry, "at": 2} if packed else entry}
    manifest = {"round": 30, "progress": {}, **ABOUT, "files": files}
    (previous / "checkpoint.json").write_text(json.dumps(manifest))
    lost = (name, "device_0003.safetensors")
    assert seal(run, 31, keep_last=1, lost=lost) == [31]
    manifest = read_manifest(run / "checkpoints" / checkpoint_name(31))
    assert manifest.lost == ["device_0003.safetensors"] and manifest.files == {name: entry}
    assert read_content(manifest, name) == content
    (manifest.path / name).write_bytes(b"3")
    with pytest.raises(
        UserError, match=r"^no checkpoint of round 32: .*31/device_0002.* is not what"
    ):
        seal(run, 32, keep_last=1, lost=lost)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["round_000031"]


@pytest.mark.parametrize("damaged", ["manifest", "state"])
def test_the_state_of_a_dead_device_comes_from_the_newest_undamaged_checkpoint(
    run, damaged, caplog
):
    name = "device_0002.safetensors"
    for round, content in ((25, b"25"), (30, b"30")):
        directory = run / "checkpoints" / checkpoint_name(round)
        (directory / name).write_bytes(content)
        files = {name: fingerprint(content)}
        table = {"format": 3, "round": round, "progress": {}, **ABOUT, "files": files}
        (directory / "checkpoint.json").write_bytes(encode_manifest(table))
    path = directory / ("checkpoint.json" if damaged == "manifest" else name)
    path.write_bytes(path.read_bytes()[:-1])
    assert seal(run, 31, keep_last=9, lost=(name,))[-2:] == [30, 31]
    manifest = read_manifest(run / "checkpoints" / checkpoint_name(31))
    assert read_content(manifest, name) == b"25" and manifest.lost == []
    (warning,) = caplog.messages
    assert str(path) in warning and "an earlier checkpoint may name the lost devices" in warning


# ------------------------------------------------------------ formats


@pytest.mark.parametrize("version", [0, 4, None, "3", [3]])
def test_another_format_is_refused_by_its_version(run, version):
    seal(run, 31, keep_last=1)
    path = run / "checkpoints" / checkpoint_name(31) / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(UserError) as refused:
        read_manifest(path.parent)
    expected = f"{path} has format {version!r}, but this fedgan_mpi reads formats 1 to 3"
    assert str(refused.value) == expected


# ------------------------------------------------------------ the manifest's own checksum


def changed_by_hand(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"images_seen": 3', '"images_seen": 4'),
        ('"round": 31', '"round": 32'),
        ('"shards_sha256": ""', '"shards_sha256": "0"'),
        ('"lost": []', '"lost": ["device_0001.safetensors"]'),
        ('"format": 3', '"format": 2'),
        ('"sha256": "', '"sha256": "0'),
        ('"round": 31', '"more": 1, "round": 31'),
    ],
)
def test_a_plausible_change_of_a_manifest_is_noticed(run, old, new):
    seal(run, 31, keep_last=1)
    path = run / "checkpoints" / checkpoint_name(31) / "checkpoint.json"
    changed_by_hand(path, old, new)
    if '"round": 32' in new:  # also with the directory that fits
        path = path.parent.rename(path.parent.with_name(checkpoint_name(32))) / path.name
    with pytest.raises(UserError) as refused:
        read_manifest(path.parent)
    assert (
        str(refused.value) == f"{path} is damaged or was changed: its SHA-256 is not the one in it"
    )


def test_a_manifest_without_its_checksum_is_refused_unless_it_is_older(run):
    seal(run, 31, keep_last=1)
    path = run / "checkpoints" / checkpoint_name(31) / "checkpoint.json"
    table = json.loads(path.read_text())
    del table["sha256"]
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"is damaged or was changed: its SHA-256"):
        read_manifest(path.parent)
    for older in ({**table, "format": 2}, {k: v for k, v in table.items() if k != "format"}):
        path.write_text(json.dumps(older, indent=2))
        assert read_manifest(path.parent).round == 31


def test_white_space_of_a_manifest_is_free(run):
    seal(run, 31, keep_last=1)
    path = run / "checkpoints" / checkpoint_name(31) / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert read_manifest(path.parent).progress == PROGRESS
