"""Third-party data set under mpirun: every rank imports it, and a killed process ends no rank."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_prep_helpers import ROOT, SERIAL, are_equal

from data_prep.__main__ import main
from fedgan_mpi import plugins
from fedgan_mpi.data import Manifest
from fedgan_mpi.testing import jobs


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    """A directory with parts.py, in a process that has permitted and imported nothing yet."""
    for name in ("_allowed", "_registered", "_loaded", "_files"):
        monkeypatch.setattr(plugins, name, type(getattr(plugins, name))())
    shutil.copy(Path(__file__).with_name("outsider_data.py"), tmp_path / "parts.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.jobs
def test_ranks_import_the_file(cwd):
    def mpirun(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [jobs.MPIRUN, "-n", "2", sys.executable, "-m", "data_prep", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=cwd,
            env={**jobs.ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    own = ["--partition=parts.py:Halves", "--features=none", "--devices=3"]
    assert main(["parts.py:Shades", "--out=out", "--devices=3", own[0], *SERIAL]) == 0
    done = mpirun("parts.py:Shades", "--out=ranks", *own)
    assert done.returncode == 0, done.stderr
    assert are_equal(cwd / "out", cwd / "ranks")
    done = mpirun("parts.py:Sick", "--out=sick", "--source-option=where=image", *own)
    assert done.returncode != 0 and "DATASET 'parts.py:Sick'" in done.stderr
    assert "Traceback" not in done.stderr and not (cwd / "sick").exists()
    done = mpirun("parts.py:Sick", "--out=sick", "--source-option=where=open file", *own)
    assert done.returncode != 0 and "cannot be sent to another process" in done.stderr
    assert "Traceback" not in done.stderr and not (cwd / "sick").exists()

    (cwd / "texts").mkdir()
    for n in range(40):
        (cwd / "texts" / f"{n:02d}").write_text("kill" if n == 21 else str(n))
    done = mpirun("parts.py:Files", "--out=files", "--source=texts", "--size=8", own[1], own[2])
    assert done.returncode != 0 and "21: a decoding process was killed" in done.stderr
    assert "Traceback" not in done.stderr and not (cwd / "files").exists()
    own = ["--source=texts", "--size=8", "--skip-bad=1", "--features=none", "--devices=3"]
    done = mpirun("parts.py:Files", "--out=files", *own)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.read(cwd / "files")
    assert sum(manifest.images) + manifest.heldout_images == 39 and len(manifest.skipped) == 1
