"""A run continues if its output cannot be written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedgan_mpi.errors import UserError
from fedgan_mpi.run.output import optional, printable
from fedgan_mpi.run.record import Record

ROUND = {"d_loss": 1.0, "g_loss": 0.5}
IMAGES = np.zeros((4, 1, 8, 8), np.uint8)


class Broken(io.StringIO):
    """A stream whose terminal is closed."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


class Closed(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.close()


@pytest.mark.parametrize("make", [Broken, Closed, lambda: None], ids=["broken", "closed", "none"])
@pytest.mark.parametrize("names", [("stdout",), ("stderr",), ("stdout", "stderr")], ids=str)
def test_a_record_needs_no_terminal(tmp_path, monkeypatch, make, names):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, make() if name in names else io.StringIO())
    record = Record(tmp_path, rounds=3)
    for t in (1, 2, 3):
        record.round({"round": t, **ROUND})
        record.log("a message")
    record.close()
    lines = (tmp_path / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
    if "stdout" not in names:
        assert sys.stdout.getvalue().count("a message\n") == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_messages_are_printed_in_any_encoding(tmp_path, monkeypatch, encoding):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
    record = Record(tmp_path, rounds=1)
    record.log("ε of b\udcffrd ü")
    record.close()
    shown = {"ascii": "\\u03b5 of b\\udcffrd \\xfc", "latin-1": "\\u03b5 of b\\udcffrd ü"}
    assert out.getvalue().decode(encoding) == shown.get(encoding, "ε of b\\udcffrd ü") + "\n"


def test_text_stays_as_it_is_where_it_can():
    assert printable("ε") == "ε" and printable("ε", "ascii") == "\\u03b5"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("x.png is not a picture"), "x.png is not a picture"),
        (OSError(28, "No space left on device", "y"), "y: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("a\nb"), "ValueError: a b"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_reason_is_one_sentence(error, reason):
    lines: list[str] = []
    with optional(Path("runs/a/report.html"), lines.append):
        raise error
    assert lines == [f"runs/a/report.html was not written: {reason}"]


def test_an_interrupt_is_no_failure_of_a_result():
    with pytest.raises(KeyboardInterrupt), optional("film", pytest.fail):
        raise KeyboardInterrupt


# ------------------------------------------------------------ grids and trackers


def test_a_grid_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "samples" / "round_000001.png").mkdir(parents=True)
    record = Record(tmp_path, rounds=2)
    record.grid(1, IMAGES)
    record.grid(2, IMAGES)
    record.close()
    path = tmp_path / "samples" / "round_000001.png"
    reason = "it is a directory, but must be a regular file"
    assert capsys.readouterr().out == f"{path} was not written: {reason}\n"
    assert (tmp_path / "samples" / "round_000002.png").exists()


# ------------------------------------------------------------ programs

PRINT = """
import os, sys
from fedgan_mpi import log
log.prepare_streams()
print("p\\udcffth ü", end=" ", flush=True)
file = open("opened", "w")
os.write(1, b"1"), os.write(2, b"2")
"""


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_program_prints_any_text_and_never_into_its_own_files(tmp_path, closed):
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=tmp_path, timeout=60, capture_output=True,
        preexec_fn=close, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "opened").read_bytes() == b""
    if 1 not in closed:
        assert done.stdout == b"p\\udcffth \\xfc 1"
