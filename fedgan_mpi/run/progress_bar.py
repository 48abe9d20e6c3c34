"""The progress bar: animated in a terminal, one line every ten seconds in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

from fedgan_mpi.run.output import output_to

_SECONDS_BETWEEN_LINES = 10.0


def make_progress_bar(rounds: int, done: int) -> tqdm[None]:
    """Return a progress bar on standard error; a disabled one if that cannot be written to.

    done: rounds completed by earlier jobs.
    """
    bar = tqdm(disable=True)
    if sys.stderr is None:
        return bar
    with output_to(sys.stderr):
        animated = sys.stderr.isatty()
        bar = tqdm(
            total=rounds,
            initial=done,
            unit="round",
            mininterval=0.2 if animated else _SECONDS_BETWEEN_LINES,
            dynamic_ncols=animated,
            file=sys.stderr if animated else _LineWriter(),
        )
    return bar


class _LineWriter:
    """A file that prints each drawing of the bar as a separate line.

    Launchers and SLURM mix the bar with other output, so that a carriage return would garble it.
    """

    def write(self, text: str) -> None:
        drawing = text.strip()
        if drawing:
            print(drawing, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
