"""A resume refuses checkpoint manifests that are damaged, also for packed state files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damaged_runs import Attack, refused_resume

from fedgan_mpi.__main__ import main
from fedgan_mpi.checkpoint.format import read_content, read_generator_parameters, read_manifest
from fedgan_mpi.testing.mutations import checkpoint, rehash, write_manifest

STATE_FILES = ["server.safetensors", "device_0001.safetensors"]

MANIFESTS: dict[str, Callable[[dict], object]] = {
    "no files": lambda m: m.update(files={}),
    "list of files": lambda m: m.update(files=[]),
    "another round": lambda m: m.update(round=7),
    "round as text": lambda m: m.update(round="2"),
    "no progress": lambda m: m.pop("progress"),
    "empty progress": lambda m: m.update(progress={}),
    "images as text": lambda m: m["progress"].update(images_seen="many"),
    "score without keys": lambda m: m["progress"].update(scores=[{}]),
    "score as number": lambda m: m["progress"].update(scores=[7]),
    "best score without round": lambda m: m["progress"].update(best={"round": None}),
    "other shards": lambda m: m.update(shards_sha256="0" * 64),
    "no configuration": lambda m: m.update(configuration={}),
    "list as section": lambda m: m.update(configuration={"model": []}),
    "list of rounds": lambda m: m["configuration"]["training"].update(rounds=[2]),
    "another configuration": lambda m: m["configuration"]["model"].update(nz=9),
    "lost devices as number": lambda m: m.update(lost=3),
    "size as text": lambda m: m["files"]["server.safetensors"].update(bytes="all"),
    "file of a former version": lambda m: m["files"].update({"server.pt": {}}),
    "additional key": lambda m: m["files"]["server.safetensors"].update(more=1),
    "no hash": lambda m: m["files"]["server.safetensors"].pop("sha256"),
}


@pytest.mark.slow
def test_manifests_of_another_run(run, outside, capsys):
    path = checkpoint(run) / "checkpoint.json"
    content = path.read_text()
    for case, change in MANIFESTS.items():
        manifest = json.loads(content)
        change(manifest)
        write_manifest(checkpoint(run), manifest)
        assert str(checkpoint(run)) in refused_resume(run, outside, capsys), case


def test_manifests_that_are_not_json_objects(run, outside, capsys):
    path = checkpoint(run) / "checkpoint.json"
    for content in (b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"round": 2}'):
        path.write_bytes(content)
        message = refused_resume(run, outside, capsys)
        assert f"{path} is missing or damaged" in message


# ------------------------------------------------------------ packed state files


def pack(run: Path) -> dict[str, tuple[int, int]]:
    """Move the state files into one, as a process that writes for all ranks does.

    Return file -> start and end in the packed file.
    """
    path = checkpoint(run) / "checkpoint.json"
    manifest = json.loads(path.read_text())
    packed, offsets = b"", {}
    for name, entry in manifest["files"].items():
        content = (checkpoint(run) / name).read_bytes()
        entry["at"] = len(packed)  # 0 for the first
        packed += content
        offsets[name] = entry["at"], len(packed)
        packed += b"\0" * 7
        (checkpoint(run) / name).unlink()
    (checkpoint(run) / "states.bin").write_bytes(packed)
    write_manifest(checkpoint(run), manifest)
    return offsets


def test_packed_files_have_the_same_content(run, finished_run, capsys):
    assert main(["evaluate", str(run)]) == 0
    scores = (run / "evaluation.jsonl").read_text()
    names = pack(run)
    assert main(["evaluate", str(run)]) == 0
    assert (run / "evaluation.jsonl").read_text() == scores  # the hash is unchanged: not rescored
    assert scores.count("checkpoints/round_000002") > 0
    (run / "evaluation.jsonl").unlink()
    assert main(["evaluate", str(run)]) == 0
    assert (run / "evaluation.jsonl").read_text() == scores
    packed, separate = read_manifest(checkpoint(run)), read_manifest(checkpoint(finished_run))
    assert len(names) == 2
    for name in names:
        assert read_content(packed, name) == read_content(separate, name)
    generator = read_generator_parameters(checkpoint(run), 10)
    assert torch.equal(generator, read_generator_parameters(checkpoint(finished_run), 10))
    assert main(["--resume", str(run), "--training.rounds", "3"]) == 0


@pytest.mark.parametrize("name", STATE_FILES)
def test_a_flipped_byte_of_a_packed_file(run, outside, capsys, name):
    offsets = pack(run)
    path = checkpoint(run) / "states.bin"
    content = path.read_bytes()
    start, end = offsets[name]
    for position in (start, (start + end) // 2, end - 1):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        message = refused_resume(run, outside, capsys)
        assert f"{path} is not what its checkpoint recorded of {name}" in message
    path.write_bytes(content[: end - 1])
    message = refused_resume(run, outside, capsys)
    assert f"{path} is not what its checkpoint recorded of " in message
    path.unlink()
    assert f"{path} cannot be read: No such file" in refused_resume(run, outside, capsys)


@pytest.mark.slow
def test_impossible_offsets_of_packed_files(run, outside, capsys):
    pack(run)
    path = checkpoint(run) / "checkpoint.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        for change in (
            {"at": entry["at"] - 1}, {"at": -1}, {"at": 2**80}, {"at": "0"}, {"at": None},
            {"at": True}, {"at": 0.5}, {"bytes": 2**80}, {"bytes": entry["bytes"] + 1},
            {"bytes": -1}, {"bytes": None}, {"sha256": None}, {"more": 1},
        ):  # fmt: skip
            files = {**manifest["files"], name: {**entry, **change}}
            write_manifest(checkpoint(run), {**manifest, "files": files})
            message = refused_resume(run, outside, capsys)
            assert f"states.bin is not what its checkpoint recorded of {name}" in message, change


def test_a_hostile_file_among_packed_files(run, outside, capsys):
    (checkpoint(run) / "device_0001.safetensors").write_bytes(pickle.dumps(Attack()))
    rehash(run, "device_0001.safetensors")
    pack(run)
    message = refused_resume(run, outside, capsys)
    assert f"{checkpoint(run)}/states.bin is not a checkpoint of this program" in message
