"""Runs, checkpoints and shards that are damaged or hostile: one sentence, and nothing written or
run elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedgan_mpi.__main__ import main
from fedgan_mpi.checkpoint.format import (
    checkpoints_of,
    read_content,
    read_generator_parameters,
    read_manifest,
)
from fedgan_mpi.comm.link import Link
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.directory import forget_after
from fedgan_mpi.run.generator_file import load

JOB = [
    "--run.name", "a", "--algorithm.name", "centralized", "--training.rounds", "2",
    "--model.width", "4", "--model.nz", "8", "--evaluation.every", "0", "--checkpoint.every", "2",
    "--checkpoint.keep_last", "1", "--data.devices", "2", "--evaluation.samples", "32",
]  # fmt: skip
FUZZ = int(os.environ.get("FUZZ_EXAMPLES", "40"))
"""Examples per fuzzed reader."""


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A run of one process, with one checkpoint, that could go on."""
    cwd = tmp_path_factory.mktemp("original")
    command = [sys.executable, "-m", "fedgan_mpi", *JOB]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=120)
    assert [path.name for path in checkpoints_of(cwd / "runs" / "a")] == ["round_000002"]
    return cwd / "runs" / "a"


@pytest.fixture
def run(original, tmp_path, monkeypatch) -> Path:
    shutil.copytree(original, tmp_path / "work" / "runs" / "a")
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "elsewhere").mkdir()

    def abort(link: Link, code: int = 1) -> None:
        pytest.fail("a bug, which would end this process", pytrace=False)

    monkeypatch.setattr(Link, "abort", abort)
    return Path("runs/a")


def tree(directory: Path) -> dict[str, bytes | None]:
    return {str(path): content(path) for path in sorted(directory.rglob("*")) if not path.is_fifo()}


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def refusal(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


def refused_resume(run: Path, tmp_path: Path, capsys) -> str:
    before, stats = tree(tmp_path / "elsewhere"), content(run / "stats.jsonl")
    configuration = content(run / "config.toml")
    said = refusal(capsys, "--resume", str(run), "--training.rounds", "3")
    assert tree(tmp_path / "elsewhere") == before
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]  # a pickle would touch one
    assert content(run / "stats.jsonl") == stats
    assert content(run / "config.toml") == configuration
    return said


def test_the_original_can_go_on(run, capsys):
    """Otherwise all that follows would show nothing."""
    assert main(["--resume", str(run), "--training.rounds", "3"]) == 0
    assert [path.name for path in checkpoints_of(run)] == ["round_000003"]


# ------------------------------------------------------------ checkpoints


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "round_000002"


def rehash(run: Path, *names: str) -> None:
    """Let the manifest say that the files are as they should be."""
    path = checkpoint(run) / "checkpoint.json"
    manifest = json.loads(path.read_text())
    for name in names:
        content = (checkpoint(run) / name).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256}
    path.write_text(json.dumps(manifest))


def boundaries(path: Path) -> list[int]:
    """Where the parts of a safetensors file begin and end: its header's length, the header, and
    each tensor; and a byte before and behind."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:start])
    ends = {end for about in tensors.values() for end in about.get("data_offsets", ())}
    places = {0, 8, *(start + end for end in ends)}
    near = {place + step for place in places for step in (-1, 0, 1)}
    return sorted(place for place in near if 0 <= place < len(content))


@pytest.mark.parametrize("believed", [False, True], ids=["", "believed"])
def test_a_file_cut_at_every_boundary(run, tmp_path, capsys, believed):
    path = checkpoint(run) / "server.safetensors"
    whole = path.read_bytes()
    places = boundaries(path)
    assert len(places) > 15
    reason = "is not a checkpoint of this program" if believed else "is not what its checkpoint"
    for n, place in enumerate(places):
        path.write_bytes(whole[:place])
        if believed:
            rehash(run, "server.safetensors")
        with pytest.raises(UserError, match=reason):
            read_generator_parameters(checkpoint(run), 10)
        if n % 5 == 0:
            assert f"{path} {reason}" in refused_resume(run, tmp_path, capsys), place


@pytest.mark.parametrize("name", ["server.safetensors", "device_0001.safetensors"])
def test_a_flipped_byte(run, tmp_path, capsys, name):
    path = checkpoint(run) / name
    whole = path.read_bytes()
    for place in boundaries(path)[::3]:
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        said = refused_resume(run, tmp_path, capsys)
        assert f"{path} is not what its checkpoint recorded" in said


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class Import:
    def __reduce__(self):
        return __import__, ("antigravity",)


def zip_of(pickled: bytes) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def tensors_of(header: object, data: bytes = b"") -> bytes:
    """A safetensors file, whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(**changes: object) -> dict:
    return {"vector": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


HOSTILE: dict[str, bytes] = {
    "a pickle that calls": pickle.dumps(Attack()),
    "an old pickle that calls": pickle.dumps(Attack(), protocol=0),
    "a pickle that imports": pickle.dumps(Import()),
    "an archive that calls": zip_of(pickle.dumps({"vector": Attack()}, protocol=2)),
    "an archive that calls builtins": zip_of(b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R."),
    "a storage that is not there": zip_of(saved({"v": torch.ones(3)})[100:300]),
    "an endless pickle": zip_of(b"\x80\x02" + b"(" * 10_000),
    "a deep pickle": zip_of(b"\x80\x02" + b"]" * 5_000 + b"a" * 4_999 + b"."),
    "a list": saved([1, 2]),
    "a tensor": saved(torch.ones(3)),
    "an array": saved({"vector": np.ones(3)}),
    "a module": saved(torch.nn.Linear(2, 2)),
    "nothing": b"",
    "text": b"{}",
    "an archive of nothing": zip_of(b""),
    "a header without end": (2**63).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (99).to_bytes(8, "little") + b"{}",
    "a header of rubbish": tensors_of(b"\xff" * 9),
    "a deep header": tensors_of(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    "a list for a header": tensors_of([]),
    "numbers of no type": tensors_of(one(dtype="X9"), bytes(8)),
    "more numbers than bytes": tensors_of(one(shape=[2**40]), bytes(8)),
    "a shape that wraps": tensors_of(one(shape=[2**62, 4]), bytes(8)),
    "a shape below nothing": tensors_of(one(shape=[-2]), bytes(8)),
    "places outside": tensors_of(one(data_offsets=[0, 2**40]), bytes(8)),
    "places turned round": tensors_of(one(data_offsets=[8, 0]), bytes(8)),
    "bytes that nobody owns": tensors_of(one(), bytes(80)),
    "two in one place": tensors_of({**one(), "v": one()["vector"]}, bytes(8)),
}


@pytest.mark.parametrize("name", ["server.safetensors", "device_0001.safetensors"])
def test_hostile_files(run, tmp_path, capsys, name):
    path = checkpoint(run) / name
    for what, content in HOSTILE.items():
        path.write_bytes(content)
        rehash(run, name)
        said = refused_resume(run, tmp_path, capsys)
        assert f"{path} is not a checkpoint of this program" in said, what


Tensors = dict[str, torch.Tensor]
STATES: dict[str, Callable[[Tensors], object]] = {
    "no stream": lambda s: s.pop("noise_stream"),
    "one more": lambda s: s.update(more=torch.ones(1)),
    "shorter": lambda s: s.update(noise_stream=s["noise_stream"][:-1].clone()),
    "one number for all": lambda s: change(s, "first", lambda first: first[:1].clone()),
    "another shape": lambda s: change(s, "first", lambda first: first[None]),
    "other numbers": lambda s: change(s, "first", torch.Tensor.double),
    "a stream of rubbish": lambda s: s.update(noise_stream=torch.full_like(s["noise_stream"], 255)),
    "steps before the first": lambda s: change(s, "steps", lambda steps: steps - steps - 1),
    "steps as truth": lambda s: change(s, "steps", torch.Tensor.bool),
    "steps as fractions": lambda s: change(s, "steps", torch.Tensor.double),
    "steps without end": lambda s: change(s, "steps", lambda steps: steps + 2**60),
    "nothing": lambda s: s.clear(),
}


def change(state: Tensors, of: str, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """One part of the moments."""
    (name,) = (name for name in state if name.startswith("moments.") and name.endswith(f".{of}"))
    state[name] = how(state[name])


@pytest.mark.parametrize("name", ["server.safetensors", "device_0001.safetensors"])
def test_states_of_another_make(run, tmp_path, capsys, name):
    path = checkpoint(run) / name
    whole = path.read_bytes()
    for what, act in STATES.items():
        state = load_tensors(whole)
        act(state)
        path.write_bytes(save_tensors(state))
        rehash(run, name)
        said = refused_resume(run, tmp_path, capsys)
        assert f"{checkpoint(run)} does not hold the states of this run" in said, what


MANIFESTS: dict[str, Callable[[dict], object]] = {
    "no files": lambda m: m.update(files={}),
    "files in a list": lambda m: m.update(files=[]),
    "another round": lambda m: m.update(round=7),
    "a round as text": lambda m: m.update(round="2"),
    "no progress": lambda m: m.pop("progress"),
    "empty progress": lambda m: m.update(progress={}),
    "images as text": lambda m: m["progress"].update(images_seen="many"),
    "scores of nothing": lambda m: m["progress"].update(scores=[{}]),
    "scores that are none": lambda m: m["progress"].update(scores=[7]),
    "a best that is none": lambda m: m["progress"].update(best={"round": None}),
    "other shards": lambda m: m.update(shards_sha256="0" * 64),
    "no configuration": lambda m: m.update(configuration={}),
    "a configuration of lists": lambda m: m.update(configuration={"model": []}),
    "rounds in a list": lambda m: m["configuration"]["training"].update(rounds=[2]),
    "another configuration": lambda m: m["configuration"]["model"].update(nz=9),
    "lost in a number": lambda m: m.update(lost=3),
    "sizes as text": lambda m: m["files"]["server.safetensors"].update(bytes="all"),
    "an older version's": lambda m: m["files"].update({"server.pt": {}}),
    "more than a file has": lambda m: m["files"]["server.safetensors"].update(more=1),
    "no hash": lambda m: m["files"]["server.safetensors"].pop("sha256"),
}


def put_together(run: Path) -> dict[str, tuple[int, int]]:
    """Have the files in one, as where one process writes for all; where each begins and ends."""
    path = checkpoint(run) / "checkpoint.json"
    manifest = json.loads(path.read_text())
    whole, places = b"", {}
    for name, told in manifest["files"].items():
        whole += b"\0" * 7
        content = (checkpoint(run) / name).read_bytes()
        told["at"] = len(whole)
        whole += content
        places[name] = told["at"], len(whole)
        (checkpoint(run) / name).unlink()
    (checkpoint(run) / "states.bin").write_bytes(whole)
    path.write_text(json.dumps(manifest))
    return places


def test_files_in_one_are_read_as_those_apart(run, original, capsys):
    assert main(["evaluate", str(run)]) == 0
    scored = (run / "evaluation.jsonl").read_text()
    names = put_together(run)
    assert main(["evaluate", str(run)]) == 0
    assert (run / "evaluation.jsonl").read_text() == scored  # the same file still, by its hash
    assert scored.count("checkpoints/round_000002") > 0
    (run / "evaluation.jsonl").unlink()
    assert main(["evaluate", str(run)]) == 0
    assert (run / "evaluation.jsonl").read_text() == scored
    together, apart = read_manifest(checkpoint(run)), read_manifest(checkpoint(original))
    assert len(names) == 2
    for name in names:
        assert read_content(together, name) == read_content(apart, name)
    generator = read_generator_parameters(checkpoint(run), 10)
    assert torch.equal(generator, read_generator_parameters(checkpoint(original), 10))
    assert main(["--resume", str(run), "--training.rounds", "3"]) == 0


@pytest.mark.parametrize("name", ["server.safetensors", "device_0001.safetensors"])
def test_a_flipped_byte_of_files_in_one(run, tmp_path, capsys, name):
    places = put_together(run)
    path = checkpoint(run) / "states.bin"
    whole = path.read_bytes()
    start, end = places[name]
    for place in (start, (start + end) // 2, end - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        said = refused_resume(run, tmp_path, capsys)
        assert f"{path} is not what its checkpoint recorded of {name}" in said
    path.write_bytes(whole[: end - 1])
    said = refused_resume(run, tmp_path, capsys)
    assert f"{path} is not what its checkpoint recorded of " in said
    path.unlink()
    assert f"{path} cannot be read: No such file" in refused_resume(run, tmp_path, capsys)


def test_places_that_are_none(run, tmp_path, capsys):
    put_together(run)
    path = checkpoint(run) / "checkpoint.json"
    whole = json.loads(path.read_text())
    for name in whole["files"]:
        told = whole["files"][name]
        for change in (
            {"at": told["at"] - 1}, {"at": -1}, {"at": 2**80}, {"at": "0"}, {"at": None},
            {"at": True}, {"at": 0.5}, {"bytes": 2**80}, {"bytes": told["bytes"] + 1},
            {"bytes": -1}, {"bytes": None}, {"sha256": None}, {"more": 1},
        ):  # fmt: skip
            files = {**whole["files"], name: {**told, **change}}
            path.write_text(json.dumps({**whole, "files": files}))
            said = refused_resume(run, tmp_path, capsys)
            assert f"states.bin is not what its checkpoint recorded of {name}" in said, change


def test_a_hostile_file_among_those_in_one(run, tmp_path, capsys):
    path = checkpoint(run) / "checkpoint.json"
    (checkpoint(run) / "device_0001.safetensors").write_bytes(HOSTILE["a pickle that calls"])
    rehash(run, "device_0001.safetensors")
    put_together(run)
    said = refused_resume(run, tmp_path, capsys)
    assert f"{path.parent}/states.bin is not a checkpoint of this program" in said


def test_manifests_of_another_make(run, tmp_path, capsys):
    path = checkpoint(run) / "checkpoint.json"
    whole = path.read_text()
    for what, change in MANIFESTS.items():
        manifest = json.loads(whole)
        change(manifest)
        path.write_text(json.dumps(manifest))
        assert str(checkpoint(run)) in refused_resume(run, tmp_path, capsys), what
    for content in (b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"round": 2}'):
        path.write_bytes(content)
        said = refused_resume(run, tmp_path, capsys)
        assert f"{path} is missing or damaged" in said


RECORDS: dict[str, Callable[[str], str]] = {
    "no lines": lambda text: "",
    "a round less": lambda text: re.sub('{"round": 2, "part.*\n', "", text),
    "a round twice": lambda text: re.sub('({"round": 2, "part.*\n)', r"\1\1", text),
    "a loss as text": lambda text: re.sub('"d_loss": [^,]*', '"d_loss": "1"', text),
    "a metric of none": lambda text: re.sub('"metric": [^,]*', '"metric": null', text),
    "a line of rubbish": lambda text: "{x}\n" + text,
    "a line of zeros": lambda text: "\0" * 9 + "}\n" + text,
    "a line without a round": lambda text: "{}\n" + text,
    "a round as text": lambda text: text.replace('"round": 1,', '"round": "1",'),
    "a deep line": lambda text: "[" * 100_000 + "{}\n" + text,
}


def test_records_that_changed(run, tmp_path, capsys):
    """What the rounds told is part of the result: it goes on whole or not at all."""
    path = run / "stats.jsonl"
    whole = path.read_text()
    for what, change in RECORDS.items():
        path.write_text(change(whole))
        said = refused_resume(run, tmp_path, capsys)
        assert f"{path} is damaged" in said or f"{path} does not tell each of" in said, what


# ------------------------------------------------------------ links, pipes, and what is missing


def put(place: str, what: str) -> Callable[[Path, Path], None]:
    def act(run: Path, elsewhere: Path) -> None:
        path = run / place
        target = elsewhere / path.name
        if path.exists():
            shutil.move(path, target)
        if what == "link":
            path.symlink_to(target)
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "loop":
            path.symlink_to(path.name)
        elif what == "directory":
            path.mkdir()
        elif what == "endless":
            path.symlink_to("/dev/zero")

    return act


NEWEST = "checkpoints/round_000002"
PLACES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    f"{place} is {what}": (put(place, what), sentence)
    for place, whats, sentence in [
        ("checkpoints", ("link", "loop", "nothing"), "checkpoints is a link|not a run directory"),
        ("samples", ("link",), "samples is a link"),
        ("stats.jsonl", ("link",), "stats.jsonl is a link"),
        ("stats.jsonl", ("directory", "pipe"), "stats.jsonl cannot be read"),
        ("config.toml", ("link", "pipe", "nothing", "directory"), "config.toml"),
        (NEWEST, ("link", "nothing"), "has no checkpoint to go on from"),
        (f"{NEWEST}/server.safetensors",
         ("link", "pipe", "loop", "directory", "endless", "nothing"),
         "server.safetensors cannot be read"),
        (f"{NEWEST}/checkpoint.json", ("link", "pipe", "endless", "nothing"),
         "checkpoint.json is missing or damaged"),
        ("shards/device_0001.h5", ("pipe", "nothing", "directory", "endless"), "device_0001.h5"),
        ("shards/shards.json", ("pipe", "nothing", "directory", "loop"), "shards.json"),
    ]
    for what in whats
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES)
def test_links_and_pipes_and_what_is_missing(run, tmp_path, capsys, case):
    act, sentence = PLACES[case]
    stats = run / "stats.jsonl"
    act(run, tmp_path / "elsewhere")
    if not stats.exists():
        stats.write_text("")
    said = refused_resume(run, tmp_path, capsys)
    assert any(part in said for part in sentence.split("|")), said


# ------------------------------------------------------------ shards and generators


def changed(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return act


def pixels_as(dtype: str) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        images = file["images"][:].astype(dtype)
        del file["images"]
        file["images"] = images

    return change


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


SHARDS: dict[str, Callable[[Path], object]] = {
    "cut early": cut(0.1),
    "cut late": cut(0.95),
    "empty": cut(0.0),
    "of text": lambda path: path.write_text("images"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Attack())),
    "without images": changed(lambda file: file.pop("images")),
    "of floats": changed(pixels_as("float32")),
    "of numbers that wrap": changed(pixels_as("int16")),
    "with other pixels": changed(lambda file: file["images"].__setitem__((0, 0, 0, 0), 77)),
    "with links outside": changed(
        lambda file: (
            file.pop("images"),
            file.__setitem__("images", h5py.ExternalLink("x.h5", "/i")),
        )
    ),
}


def test_shards_that_changed(run, tmp_path, capsys):
    path = run / "shards" / "device_0001.h5"
    whole = path.read_bytes()
    for what, act in SHARDS.items():
        path.write_bytes(whole)
        act(path)
        assert "device_0001.h5" in refused_resume(run, tmp_path, capsys), what


# ------------------------------------------------------------ fuzzing

mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, changes) -> bytes:
    data = bytearray(content)
    for kind, share, extra in changes:
        place = int(share * len(data))
        end = place + len(extra)
        if kind == "flip":
            data[place:end] = bytes(a ^ b for a, b in zip(data[place:end], extra, strict=False))
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = extra
        elif kind == "zero":
            data[place:end] = bytes(len(extra))
        else:
            data[place:place] = data[: place // 2]
    return bytes(data)


def read_server(run: Path) -> object:
    rehash(run, "server.safetensors")
    return read_generator_parameters(checkpoint(run), 10)


def read_shards(run: Path) -> object:
    manifest = Manifest.read(run / "shards")
    shard = read_shard(run / "shards" / "device_0001.h5", image_shape=manifest.image_shape)
    manifest.check_shard(shard, 1)
    return shard


def read_configuration(run: Path) -> object:
    from fedgan_mpi.cli.parser import read_config

    return read_config(run / "config.toml")


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoints/round_000002/checkpoint.json": lambda run: read_manifest(checkpoint(run)),
    "checkpoints/round_000002/server.safetensors": read_server,
    "config.toml": read_configuration,
    "shards/shards.json": read_shards,
    "shards/device_0001.h5": read_shards,
    "generator.json": lambda run: load(run / "generator.safetensors"),
    "generator.safetensors": lambda run: load(run / "generator.safetensors"),
    "stats.jsonl": lambda run: forget_after(run, 2, 2) or run,
}


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused(original, tmp_path, name):
    """Whatever the bytes are: a value or a UserError, and nothing else."""
    run = tmp_path / "a"
    shutil.copytree(original, run)
    path = run / name
    manifest = (checkpoint(run) / "checkpoint.json").read_bytes()
    whole = path.read_bytes()
    assert READERS[name](run) is not None
    refused = []

    @settings(
        max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(mutations)
    def read(changes):
        (checkpoint(run) / "checkpoint.json").write_bytes(manifest)
        path.write_bytes(mutate(whole, changes))
        try:
            READERS[name](run)
        except UserError as error:
            assert "\n" not in str(error)
            refused.append(str(error))

    read()
    assert refused, "the reader has not seen what was done to the file"
