"""`watch RUN`: a running job in the terminal, from what it writes; also over ssh."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fedgan_mpi.cli.parser import read_config
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.generator_file import FINAL
from fedgan_mpi.run.stats import STATS, Line, parse_lines, split

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 48  # characters of a sparkline


def watch(run: Path, *, seconds: float, once: bool) -> None:
    """Print how far a run is, and again every `seconds` until it has written its generator.

    Raises UserError where there is no run.
    """
    rounds = read_config(run / "config.toml").training.rounds
    moves = sys.stdout.isatty()
    drawn = 0
    while True:
        ended = (run / f"{FINAL}.safetensors").exists()
        lines = describe(run, rounds, ended=ended)
        if moves and drawn:
            print(f"\x1b[{drawn}A\x1b[J", end="")  # back over what was drawn before
        print("\n".join(lines), flush=True)
        drawn = len(lines)
        if once or ended:
            return
        time.sleep(seconds)


def describe(run: Path, rounds: int, *, ended: bool) -> list[str]:
    """The lines that `watch` prints."""
    played, scores = _read(run / STATS)
    done = played[-1]["round"] if played else 0
    head = f"{run}: round {done} of {rounds}"
    if ended:
        head += ", ended"
    elif played:
        recent = played[-20:]
        left = (rounds - done) * sum(line["seconds"] for line in recent) / len(recent)
        head += f", {_duration(left)} to go"
    lines = [head]
    for key in ("d_loss", "g_loss"):
        losses = [line[key] for line in played if line[key] is not None]
        if losses:
            lines.append(f"{key}  {sparkline(losses)}  {losses[-1]:.3f}")
    if scores:
        metric = scores[0]["metric"]
        same = [line for line in scores if line["metric"] == metric]
        values = [line["value"] for line in same]
        best = min(same, key=lambda line: line["value"])
        lines.append(f"score   {sparkline(values)}  {values[-1]:.4g}")
        told = f"best {best['value']:.4g} after round {best['round']}"
        lines.append(f"        {metric}, {told}; held-out real images {same[-1]['floor']:.4g}")
    grids = sorted((run / "samples").glob("round_*.png"))
    if grids:
        lines.append(f"samples {grids[-1]}")
    return lines


def sparkline(values: Sequence[float]) -> str:
    """At most 48 characters, as high as the means of as many stretches of the values."""
    count = min(len(values), _WIDTH)
    ends = [len(values) * n // count for n in range(count + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(ends)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _read(path: Path) -> tuple[list[Line], list[Line]]:
    """(rounds, scores); the job may be in the middle of the last line."""
    if not path.exists():
        return [], []
    try:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        rounds, scores = split(parse_lines(whole.splitlines()))
    except ValueError:
        raise UserError(f"{path} is damaged or of an older version") from None
    return rounds, [line for line in scores if None not in (line["value"], line["floor"])]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
