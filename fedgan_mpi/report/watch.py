"""`watch RUN`: progress of a running job in a terminal, read from its run directory.

Needs neither MPI nor the job's node, so it also works over ssh.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fedgan_mpi.config.io import read_config
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.generator_file import FINAL
from fedgan_mpi.run.image_grids import grids_of
from fedgan_mpi.run.stats import STATS, Line, parse_lines, read_text_lines, split
from fedgan_mpi.schema import SchemaError

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 48  # characters of a sparkline
_RECENT = 20  # rounds that predict the remaining time


def watch(run: Path, *, seconds: float, once: bool) -> None:
    """Print the progress of a run every `seconds`, until the run has finished.

    With `once`, print it once. Raises UserError if the directory is no run.
    """
    rounds = read_config(run / "config.toml").training.rounds
    is_terminal = sys.stdout.isatty()
    printed = 0
    while True:
        finished = (run / f"{FINAL}.safetensors").exists()
        lines = describe(run, rounds, finished=finished)
        if is_terminal and printed:
            print(f"\x1b[{printed}A\x1b[J", end="")  # move up and clear the previous output
        print("\n".join(lines), flush=True)
        printed = len(lines)
        if once or finished:
            return
        time.sleep(seconds)


def describe(run: Path, rounds: int, *, finished: bool) -> list[str]:
    """Return the lines that `watch` prints. Raises UserError if stats.jsonl is damaged."""
    completed, scores = _read(run / STATS)
    t = completed[-1]["round"] if completed else 0
    status = f"{run}: round {t} of {rounds}"
    if finished:
        status += ", finished"
    elif completed:
        recent = completed[-_RECENT:]
        remaining = (rounds - t) * sum(line["seconds"] for line in recent) / len(recent)
        status += f", {_format_duration(remaining)} remaining"
    lines = [status]
    for key in ("d_loss", "g_loss"):
        losses = [line[key] for line in completed if line[key] is not None]
        if losses:
            lines.append(f"{key}  {sparkline(losses)}  {losses[-1]:.3f}")
    if scores:
        lines += _describe_scores(scores)
    grids = grids_of(run)
    if grids:
        lines.append(f"samples {grids[-1]}")
    return lines


def _describe_scores(scores: Sequence[Line]) -> list[str]:
    """Return the sparkline of the first metric, and its best value and floor."""
    metric = scores[0]["metric"]
    lines = [line for line in scores if line["metric"] == metric]
    values = [line["value"] for line in lines]
    best = min(lines, key=lambda line: line["value"])
    best_value = f"best {best['value']:.4g} after round {best['round']}"
    floor = f"floor (held-out real images) {lines[-1]['floor']:.4g}"
    return [
        f"score   {sparkline(values)}  {values[-1]:.4g}",
        f"        {metric}: {best_value}, {floor}",
    ]


def sparkline(values: Sequence[float]) -> str:
    """Return at most 48 bars; each shows the mean of an equal part of the values."""
    count = min(len(values), _WIDTH)
    ends = [len(values) * n // count for n in range(count + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(ends)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _read(path: Path) -> tuple[list[Line], list[Line]]:
    """Return (rounds, scores), without the last line if the job is still writing it."""
    if not path.exists():
        return [], []
    try:
        lines = [line for line in read_text_lines(path) if line.endswith("\n")]
        rounds, scores = split(parse_lines(lines))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except SchemaError as error:
        raise UserError(f"{path} is damaged or of an older version ({error})") from None
    return rounds, [line for line in scores if None not in (line["value"], line["floor"])]


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
