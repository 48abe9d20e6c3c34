"""What a log file has of a run's progress."""

from __future__ import annotations

import io
import re
import sys

from fedgan_mpi.run import progress_bar as bar
from fedgan_mpi.run.directory import Record

BAR = re.compile(r" *\d+%\|.*\| \d+/10 \[.*round.*\]")


def play(tmp_path, seconds: float, monkeypatch) -> None:
    monkeypatch.setattr(bar, "_SECONDS_BETWEEN_LINES", seconds)
    record = Record(tmp_path, rounds=10)
    for t in range(1, 11):
        record.round({"round": t, "d_loss": 1.0, "g_loss": 0.5})
        if t == 5:
            record.log("said in the middle")
    record.score({"round": 10, "metric": "frechet_x", "value": 7.04})
    record.log("said at the end")
    record.close()


def test_a_log_file_has_whole_lines_and_what_is_said_among_them(tmp_path, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(sys, "stdout", log)  # as SLURM has it: one file for both
    play(tmp_path, 0, monkeypatch)
    lines = log.getvalue().split("\n")
    assert "\r" not in log.getvalue() and lines.pop() == ""
    said = ["said in the middle", "said at the end"]
    assert [line for line in lines if not BAR.fullmatch(line)] == said
    assert " 0/10 [" in lines[0]
    assert "10/10" in lines[-1] and "d_loss=1.000, g_loss=0.500, score=7.0]" in lines[-1]
    assert lines.index(said[0]) == 6  # the start, and five rounds
    assert len(lines) == 2 + 12  # each round and the end


def test_a_log_file_has_a_line_now_and_then(tmp_path, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    play(tmp_path, 1000, monkeypatch)
    assert [line.split("%")[0].strip() for line in log.getvalue().splitlines()] == ["0", "100"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_that_is_drawn_over_itself(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    play(tmp_path, 0, monkeypatch)
    assert terminal.getvalue().count("\r") > 2 and "10/10" in terminal.getvalue()
