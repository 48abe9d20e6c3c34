"""The progress bar in log files and terminals."""

from __future__ import annotations

import io
import re
import sys

from fedgan_mpi.run import progress_bar
from fedgan_mpi.run.record import Record

BAR = re.compile(r" *\d+%\|.*\| \d+/10 \[.*round.*\]")


def write_record(tmp_path, seconds: float, monkeypatch) -> None:
    """Record ten rounds, a score and two messages. seconds: between lines of a log file."""
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", seconds)
    record = Record(tmp_path, rounds=10)
    for t in range(1, 11):
        record.round({"round": t, "d_loss": 1.0, "g_loss": 0.5})
        if t == 5:
            record.log("first message")
    record.score({"round": 10, "metric": "frechet_x", "value": 7.04})
    record.log("last message")
    record.close()


def test_a_log_file_has_whole_lines_and_messages_between_them(tmp_path, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(sys, "stdout", log)  # SLURM writes both to one file
    write_record(tmp_path, 0, monkeypatch)
    lines = log.getvalue().split("\n")
    assert "\r" not in log.getvalue() and lines.pop() == ""
    messages = ["first message", "last message"]
    assert [line for line in lines if not BAR.fullmatch(line)] == messages
    assert " 0/10 [" in lines[0]
    assert "10/10" in lines[-1] and "d_loss=1.000, g_loss=0.500, score=7.0]" in lines[-1]
    assert lines.index(messages[0]) == 6  # the start, and five rounds
    assert len(lines) == 2 + 12  # messages, start, ten rounds and end


def test_a_log_file_has_few_lines(tmp_path, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    write_record(tmp_path, 1000, monkeypatch)
    assert [line.split("%")[0].strip() for line in log.getvalue().splitlines()] == ["0", "100"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_an_animated_bar(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    write_record(tmp_path, 0, monkeypatch)
    assert terminal.getvalue().count("\r") > 2 and "10/10" in terminal.getvalue()
