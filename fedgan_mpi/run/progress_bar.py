"""How far training is: a bar that moves in a terminal, a line now and then behind a launcher and in
a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


def make_progress_bar(rounds: int, done: int) -> tqdm[None]:
    """On standard error. done: rounds that a resumed run has behind it."""
    moves = sys.stderr.isatty()
    return tqdm(
        total=rounds,
        initial=done,
        unit="round",
        mininterval=0.2 if moves else _SECONDS_BETWEEN_LINES,
        dynamic_ncols=moves,
        file=sys.stderr if moves else _Lines(),
    )


class _Lines:
    """Takes a bar that is drawn over itself, and writes each drawing as a line of its own: behind a
    launcher and in SLURM's log it stands among all else that is said."""

    def write(self, text: str) -> None:
        drawn = text.strip()
        if drawn:
            print(drawn, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
