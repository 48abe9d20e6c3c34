"""A resume refuses checkpoint files that are cut, flipped, hostile or of another run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from damaged_runs import Attack, refused_resume
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedgan_mpi.__main__ import main
from fedgan_mpi.checkpoint.format import checkpoints_of, read_generator_parameters
from fedgan_mpi.errors import UserError
from fedgan_mpi.testing.mutations import checkpoint, rehash

STATE_FILES = ["server.safetensors", "device_0001.safetensors"]


def test_the_undamaged_run_can_be_resumed(run, capsys):
    """Without this, the other tests would prove nothing."""
    assert main(["--resume", str(run), "--training.rounds", "3"]) == 0
    assert [path.name for path in checkpoints_of(run)] == ["round_000003"]


# ------------------------------------------------------------ damaged bytes


def boundaries(path: Path) -> list[int]:
    """Return the positions at and next to the boundaries of a safetensors file.

    Boundaries: length of the header, header, and each tensor.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:start])
    ends = {end for entry in tensors.values() for end in entry.get("data_offsets", ())}
    positions = {0, 8, *(start + end for end in ends)}
    neighbours = {position + step for position in positions for step in (-1, 0, 1)}
    return sorted(position for position in neighbours if 0 <= position < len(content))


@pytest.mark.parametrize("hash_fits", [False, True], ids=["", "hash_fits"])
def test_a_file_cut_at_every_boundary(run, outside, capsys, hash_fits):
    path = checkpoint(run) / "server.safetensors"
    content = path.read_bytes()
    positions = boundaries(path)
    assert len(positions) > 15
    reason = "is not a checkpoint of this program" if hash_fits else "is not what its checkpoint"
    for n, position in enumerate(positions):
        path.write_bytes(content[:position])
        if hash_fits:
            rehash(run, "server.safetensors")
        with pytest.raises(UserError, match=reason):
            read_generator_parameters(checkpoint(run), 10)
        if n % 5 == 0:
            assert f"{path} {reason}" in refused_resume(run, outside, capsys), position


@pytest.mark.parametrize("name", STATE_FILES)
def test_a_flipped_byte(run, outside, capsys, name):
    path = checkpoint(run) / name
    content = path.read_bytes()
    for position in boundaries(path)[::3]:
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        message = refused_resume(run, outside, capsys)
        assert f"{path} is not what its checkpoint recorded" in message


# ------------------------------------------------------------ hostile files


class Import:
    def __reduce__(self):
        return __import__, ("antigravity",)


def archive(pickled: bytes) -> bytes:
    """Return a file in the format of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def tensors(header: object, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def vector(**changes: object) -> dict:
    """Return the header of one float32 vector of length 2, with changes."""
    return {"vector": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


HOSTILE: dict[str, bytes] = {
    "pickle that calls": pickle.dumps(Attack()),
    "pickle that calls, protocol 0": pickle.dumps(Attack(), protocol=0),
    "pickle that imports": pickle.dumps(Import()),
    "archive that calls": archive(pickle.dumps({"vector": Attack()}, protocol=2)),
    "archive that calls builtins": archive(b"\x80\x02c__builtin__\neval\nX\x01\0\0\x001\x85R."),
    "archive without its storage": archive(saved({"v": torch.ones(3)})[100:300]),
    "endless pickle": archive(b"\x80\x02" + b"(" * 10_000),
    "deep pickle": archive(b"\x80\x02" + b"]" * 5_000 + b"a" * 4_999 + b"."),
    "list": saved([1, 2]),
    "tensor": saved(torch.ones(3)),
    "array": saved({"vector": np.ones(3)}),
    "module": saved(torch.nn.Linear(2, 2)),
    "empty file": b"",
    "text": b"{}",
    "empty archive": archive(b""),
    "header without end": (2**63).to_bytes(8, "little") + b"{}",
    "header longer than the file": (99).to_bytes(8, "little") + b"{}",
    "header that is not JSON": tensors(b"\xff" * 9),
    "deep header": tensors(b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    "list as header": tensors([]),
    "unknown dtype": tensors(vector(dtype="X9"), bytes(8)),
    "more numbers than bytes": tensors(vector(shape=[2**40]), bytes(8)),
    "shape that overflows": tensors(vector(shape=[2**62, 4]), bytes(8)),
    "negative shape": tensors(vector(shape=[-2]), bytes(8)),
    "offsets outside": tensors(vector(data_offsets=[0, 2**40]), bytes(8)),
    "offsets in reverse": tensors(vector(data_offsets=[8, 0]), bytes(8)),
    "bytes of no tensor": tensors(vector(), bytes(80)),
    "two tensors at one offset": tensors({**vector(), "v": vector()["vector"]}, bytes(8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STATE_FILES)
def test_hostile_files(run, outside, capsys, name):
    path = checkpoint(run) / name
    for case, content in HOSTILE.items():
        path.write_bytes(content)
        rehash(run, name)
        message = refused_resume(run, outside, capsys)
        assert f"{path} is not a checkpoint of this program" in message, case


# ------------------------------------------------------------ states of another run

Tensors = dict[str, torch.Tensor]


def change_moments(
    state: Tensors, key: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Replace one tensor of the optimizer's moments."""
    (name,) = (name for name in state if name.startswith("moments.") and name.endswith(f".{key}"))
    state[name] = change(state[name])


STATES: dict[str, Callable[[Tensors], object]] = {
    "missing stream": lambda s: s.pop("noise_stream"),
    "additional tensor": lambda s: s.update(more=torch.ones(1)),
    "short stream": lambda s: s.update(noise_stream=s["noise_stream"][:-1].clone()),
    "moments of length 1": lambda s: change_moments(s, "first", lambda first: first[:1].clone()),
    "moments of another shape": lambda s: change_moments(s, "first", lambda first: first[None]),
    "moments of another type": lambda s: change_moments(s, "first", torch.Tensor.double),
    "invalid stream": lambda s: s.update(noise_stream=torch.full_like(s["noise_stream"], 255)),
    "negative steps": lambda s: change_moments(s, "steps", lambda steps: steps - steps - 1),
    "boolean steps": lambda s: change_moments(s, "steps", torch.Tensor.bool),
    "fractional steps": lambda s: change_moments(s, "steps", torch.Tensor.double),
    "huge steps": lambda s: change_moments(s, "steps", lambda steps: steps + 2**60),
    "no tensors": lambda s: s.clear(),
}


@pytest.mark.parametrize("name", STATE_FILES)
def test_states_of_another_run(run, outside, capsys, name):
    path = checkpoint(run) / name
    content = path.read_bytes()
    for case, change in STATES.items():
        state = load_tensors(content)
        change(state)
        path.write_bytes(save_tensors(state))
        rehash(run, name)
        message = refused_resume(run, outside, capsys)
        assert f"{checkpoint(run)} does not hold the states of this run" in message, case
