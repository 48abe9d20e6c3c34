"""Images are decoded on processes or MPI ranks with the same result as in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import originals
import pytest
from data_prep_helpers import ROOT, SERIAL, are_equal, celeba_command

from data_prep.__main__ import main
from data_prep.decode import Decoder, decode_in_processes, decode_serially
from data_prep.sources import Digits
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError


@pytest.fixture
def faces(tmp_path) -> Path:
    originals.celeba(tmp_path / "celeba")
    return tmp_path / "celeba"


def mpirun(ranks: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    installed = Path(sys.executable).parent / "mpirun"
    launcher = str(installed) if installed.exists() else "mpirun"
    return subprocess.run(
        [launcher, "-n", str(ranks), sys.executable, "-m", "data_prep", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_processes_give_same_shards(tmp_path, faces):
    for processes in ("1", "3"):
        more = ("--features", "none", "--processes", processes)
        assert main(celeba_command(faces, tmp_path / processes, *more)) == 0
    assert are_equal(tmp_path / "1", tmp_path / "3")
    manifest = Manifest.read(tmp_path / "1")
    assert manifest.image_shape == (3, 16, 16) and manifest.heldout_images == 20
    assert sum(manifest.images) == 40 and not manifest.class_names


@pytest.mark.jobs
def test_ranks_give_same_shards(tmp_path, faces):
    main(celeba_command(faces, tmp_path / "1", *SERIAL))
    job = mpirun(3, celeba_command(faces, tmp_path / "ranks", "--features", "none"))
    assert job.returncode == 0, job.stderr
    assert are_equal(tmp_path / "1", tmp_path / "ranks")


@pytest.mark.jobs
def test_all_ranks_end_after_invalid_input(tmp_path, faces):
    (faces / "img_align_celeba" / "000033.jpg").write_bytes(b"")
    job = mpirun(3, celeba_command(faces, tmp_path / "out"))
    assert job.returncode != 0 and not (tmp_path / "out").exists()
    assert "000033.jpg" in job.stderr and "Traceback" not in job.stderr
    job = mpirun(2, ["celeba", "--out", str(tmp_path / "out")])
    assert job.returncode != 0 and "needs --source" in job.stderr


def test_separate_mpi_worlds_are_refused(tmp_path):
    """The mpirun of a different MPI starts worlds of one rank, which would write the same files."""
    job = subprocess.run(
        [sys.executable, "-m", "data_prep", "digits", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMPI_COMM_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert job.returncode == 1 and "MPI sees a world of 1" in job.stderr
    assert not (tmp_path / "out").exists()


def test_blocks_are_small_and_few_are_in_progress():
    decoder = Decoder(source=Digits(), size=64, image_shape=(3, 64, 64))
    blocks = decoder.blocks(np.arange(1000))
    assert [n for block in blocks for n in block] == list(range(1000))
    assert max(map(len, blocks)) * 3 * 64 * 64 <= 2**20
    submitted = []

    def count_blocks():
        for block in blocks:
            submitted.append(1)
            yield block

    decoded = decode_in_processes(2)(decoder, count_blocks())
    next(decoded)
    assert len(submitted) <= 5
    first = next(iter(decode_serially(decoder, blocks[:1])))
    assert first.images.shape == (len(blocks[0]), 3, 64, 64)
    decoded.close()


def test_killed_decoding_process_names_its_image(monkeypatch):
    decoder = Decoder(source=Digits(), size=16, image_shape=(1, 16, 16))
    monkeypatch.setattr(Digits, "image", lambda self, index: os.kill(os.getpid(), signal.SIGKILL))
    (block,) = decode_in_processes(2)(decoder, [np.arange(3)])
    assert not len(block.images) and len(block.errors) == 3
    assert block.errors[1].startswith("1: a decoding process was killed")


def test_process_that_is_killed_between_images_raises_error(monkeypatch):
    decoder = Decoder(source=Digits(), size=16, image_shape=(1, 16, 16))
    monkeypatch.setattr(
        Decoder, "__call__", lambda self, block, started: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(UserError, match="a decoding process was killed"):
        list(decode_in_processes(2)(decoder, [np.arange(3)]))


def test_decoding_processes_end_with_killed_parent():
    code = (
        "import os, signal, sys, time, numpy as np\n"
        "from data_prep.decode import Decoder, decode_in_processes\n"
        "from data_prep.sources import Digits\n"
        "decoder = Decoder(source=Digits(), size=16, image_shape=(1, 16, 16))\n"
        "decoded = decode_in_processes(2)(decoder, [np.arange(9)] * 9)\n"
        "next(decoded)\n"
        "import multiprocessing\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60
    )
    children = [int(pid) for pid in job.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(child) for child in children)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
