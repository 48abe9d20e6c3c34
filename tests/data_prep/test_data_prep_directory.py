"""The output directory: resumed after a kill, removed after an error, never overwritten."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import originals
import pytest
from data_prep_helpers import ROOT, SERIAL, are_equal, celeba_command, truncate

from data_prep.__main__ import main
from data_prep.directory import output_directory
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError


@pytest.fixture
def faces(tmp_path) -> Path:
    originals.celeba(tmp_path / "celeba")
    return tmp_path / "celeba"


def kill_in_second_shard(arguments: list[str], out: Path) -> subprocess.CompletedProcess:
    """Run a command that kills itself while it decodes the second shard."""
    code = (
        "import os, signal, sys\n"
        "from data_prep.sources.celeba import CelebA\n"
        "from data_prep.__main__ import main\n"
        "decode = CelebA.image\n"
        "def image(self, index):\n"
        f"    if os.path.exists({str(out / 'device_0001.h5')!r}):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return decode(self, index)\n"
        "CelebA.image = image\n"
        "main(sys.argv[1:])\n"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, timeout=60)


def test_killed_run_resumes(tmp_path, faces):
    """The resumed run keeps complete shards and gives the result of an uninterrupted run."""
    uninterrupted, out = tmp_path / "uninterrupted", tmp_path / "out"
    main(celeba_command(faces, uninterrupted, *SERIAL))
    killed = kill_in_second_shard(celeba_command(faces, out, *SERIAL), out)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "shards.json").exists() and (out / "device_0001.h5").exists()
    with pytest.raises(UserError, match=r"shards\.json cannot be read"):
        Manifest.read(out)
    first = (out / "device_0001.h5").stat().st_mtime_ns
    assert main(celeba_command(faces, out, *SERIAL)) == 0
    assert are_equal(uninterrupted, out)
    assert (out / "device_0001.h5").stat().st_mtime_ns == first
    names = [sorted(path.name for path in folder.iterdir()) for folder in (out, uninterrupted)]
    assert names[0] == names[1]


def test_resume_with_different_settings_is_refused(tmp_path, faces, capsys):
    out = tmp_path / "out"
    kill_in_second_shard(celeba_command(faces, out, *SERIAL), out)
    assert main([*celeba_command(faces, out, *SERIAL), "--seed", "1"]) == 1
    assert "holds an interrupted run with a different seed" in capsys.readouterr().err
    assert (out / "device_0001.h5").exists()


def test_full_disk_leaves_no_files(tmp_path, faces, capsys, monkeypatch):
    out = tmp_path / "out"
    usage = type("usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.directory.shutil.disk_usage", lambda path: usage)
        assert main(celeba_command(faces, out, *SERIAL)) == 1
    assert "bytes more, but the disk has 1,000" in capsys.readouterr().err
    assert not out.exists()
    # A limit on file sizes simulates a disk that fills up during the run.
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        "from data_prep.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    job = subprocess.run(
        [sys.executable, "-c", limited, *celeba_command(faces, out, *SERIAL)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert job.returncode == 1 and f"{out} cannot be written: device_0001.h5: " in job.stderr
    assert "Traceback" not in job.stderr and not out.exists()


def test_full_disk_is_named_as_reason(tmp_path):
    with (
        pytest.raises(UserError, match="out cannot be written: No space left"),
        output_directory(tmp_path / "out", {"devices": 1}, 0),
    ):
        raise OSError("Can't write data (errno = 28, error message = 'No space left on device')")
    assert not (tmp_path / "out").exists()


def test_existing_files_are_never_overwritten(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    assert main(["digits", "--out", str(out)]) == 1
    assert f"{out} already exists" in capsys.readouterr().err
    assert (out / "precious.txt").read_text() == "x"
    file = tmp_path / "file"
    file.write_text("x")
    assert main(["digits", "--out", str(file)]) == 1
    assert main(["digits", "--out", str(file / "below")]) == 1
    assert f"{file / 'below'} cannot be created" in capsys.readouterr().err


def test_unreadable_image_removes_output(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    originals.image_folder(source)
    truncate(source / "dog" / "004.jpg")
    arguments = ["--source", str(source), "--devices", "2", "--processes", "1"]
    assert main(["imagefolder", *arguments, "--out", str(out)]) == 1 and not out.exists()
