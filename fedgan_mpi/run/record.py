"""The record of a run: stats.jsonl, sample grids, the progress bar and messages.

On device ranks a record does nothing, so that callers need no condition on the rank.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedgan_mpi.data import Images
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors, remove_temporary_files, write_complete
from fedgan_mpi.run.image_grids import write_grid
from fedgan_mpi.run.output import optional, output_to, print_line
from fedgan_mpi.run.progress_bar import make_progress_bar
from fedgan_mpi.run.stats import ROUND_KEYS, STATS, parse_lines, read_text_lines, split
from fedgan_mpi.schema import SchemaError


class Record:
    """Writes what a job reports while it trains.

    Only stats.jsonl is necessary. The run continues if another file cannot be written.
    """

    def __init__(self, run: Path | None, *, rounds: int, done: int = 0) -> None:
        """Open the record. Of a resumed run, `rewind_record` must have been called before.

        run: the run directory; None on device ranks. rounds: number of rounds of the whole run.
        done: rounds completed by earlier jobs.
        """
        self.run = run
        if run is None:
            return
        with explain_write_errors(run / STATS):
            self._stats = open(run / STATS, "a", encoding="utf-8")  # noqa: SIM115 - `close` does
        self._bar = make_progress_bar(rounds, done)
        self._postfix: dict[str, str] = {}
        self._reported_devices: set[int] = set()

    def round(self, stats: dict[str, Any]) -> None:
        """Write a round's line of stats.jsonl and advance the progress bar."""
        if self.run is None:
            return
        self._write(stats)
        for k in set(stats.get("skipped", [])) - self._reported_devices:
            self._reported_devices.add(k)
            self.log(
                f"The update of device {k} is not finite in round {stats['round']}: the device "
                "counts as absent."
            )
        for key in ("d_loss", "g_loss", *(stats.keys() - ROUND_KEYS)):
            if stats[key] is not None:
                self._postfix[key] = f"{stats[key]:.3f}"
        self._bar.set_postfix(self._postfix, refresh=False)
        self._show(self._bar.update)

    def score(self, score: dict[str, Any]) -> None:
        """Write a score's line of stats.jsonl, and show Fréchet distances in the progress bar."""
        if self.run is None:
            return
        self._write(score)
        if score["metric"].startswith("frechet"):
            self._postfix["score"] = f"{score['value']:.1f}"
            self._bar.set_postfix(self._postfix, refresh=False)

    def grid(self, round: int, images: Images) -> None:
        """Write samples/round_NNNNNN.png, if that is possible. images: (N, C, H, W)."""
        if self.run is None:
            return
        path = self.run / "samples" / f"round_{round:06d}.png"
        with optional(path, self.log):
            write_grid(path, images)

    def log(self, line: str) -> None:
        """Print a line to standard output, above the progress bar."""
        if self.run is not None:
            print_line(line)

    def close(self) -> None:
        """Close the files and end the progress bar."""
        if self.run is None:
            return
        self._show(self._bar.close)
        with suppress(OSError):  # each line has been flushed
            self._stats.close()

    def _show(self, act: Callable[[], object]) -> None:
        """Draw the progress bar. If that fails, do without it from now on."""

        def disable() -> None:
            self._bar.disable = True

        with output_to(sys.stderr, disable):
            act()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN: a number that is not finite becomes null.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in line.items()
        }
        path = Path(self._stats.name)
        with explain_write_errors(path):
            self._stats.write(json.dumps(finite, allow_nan=False) + "\n")
            self._stats.flush()
        _check_present(path, self._stats.fileno())


def _check_present(path: Path, descriptor: int) -> None:
    """Raise UserError if an open file is no longer at its path: its lines would be lost."""
    try:
        present = os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        present = False
    except OSError:  # a network file system that is slow to answer
        return
    if not present:
        raise UserError(f"{path} was moved or deleted while this job wrote it, and the job ends")


def rewind_record(run: Path, done: int, scored: int) -> None:
    """Remove the lines of stats.jsonl that a resumed run writes again, and temporary files.

    done: completed rounds at the checkpoint. scored: round of the last score then; -1 if none.
    Raises UserError if stats.jsonl is damaged or lacks a completed round.
    """
    for directory in (run, run / "samples"):
        remove_temporary_files(directory)
    path = run / STATS
    try:
        lines = read_text_lines(path) if path.exists() else []
        # A kill may have cut the last line.
        lines = [line for line in lines if line.endswith("}\n")]
        parsed = parse_lines(lines)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise UserError(
            f"{path} is damaged; restore it from a copy, or start a new run ({error})"
        ) from None
    kept = [
        (text, line)
        for text, line in zip(lines, parsed, strict=True)
        if line["round"] <= (scored if "metric" in line else done)
    ]
    rounds, _ = split(line for _, line in kept)
    if [line["round"] for line in rounds] != list(range(1, done + 1)):
        raise UserError(
            f"{path} lacks some of the {done} completed rounds; "
            "restore it from a copy, or start a new run"
        )
    with explain_write_errors(path):
        write_complete(path, "".join(text for text, _ in kept).encode())
