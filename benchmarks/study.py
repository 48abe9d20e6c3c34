"""Trains several settings with several seeds, and reads their scores."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common

from fedgan_mpi.report.history import History, read_history
from fedgan_mpi.run.stats import read_stats

NONSATURATING = ["--training.loss=nonsaturating", "--model.ema=0.99"]
"""For studies at any size of images. Defaults up to 16 pixels are others."""
THREE_STEPS = [
    *NONSATURATING, "--training.generator_steps=3", "--training.generator_batch_size=64",
    "--training.generator_lr=2e-4", "--training.discriminator_lr=2e-4",
]  # fmt: skip


class Study:
    """One run for each setting and seed. Finished runs are not repeated.

    Flags of the command line that are not of the study go to every run.

    settings: name -> flags, in which {shards} stands for the value of --shards. shared_flags: flags
    of every run. last: number of scores at the end of a run whose mean is its value.
    """

    def __init__(
        self,
        description: str | None,
        settings: Mapping[str, Sequence[str]],
        shared_flags: Sequence[str],
        *,
        seeds: int,
        last: int = 1,
    ) -> None:
        parser = common.make_parser(description)
        parser.add_argument("--shards", type=Path, required=True)
        parser.add_argument("--out", type=Path, required=True, help="parent of the runs")
        parser.add_argument("--seeds", type=int, default=seeds)
        parser.add_argument("--ranks", type=int, default=3)
        parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
        parser.add_argument("--only", nargs="+", metavar="NAME", choices=settings)
        self._args, self._more_flags = parser.parse_known_args()
        self._settings, self._shared_flags, self._last = settings, shared_flags, last
        self.names: list[str] = self._args.only or list(settings)
        """The names of the settings to train and to read."""

    def train(self) -> None:
        """Train the runs that do not exist yet, seed by seed."""
        runs = [(name, seed) for seed in range(self._args.seeds) for name in self.names]
        with ThreadPoolExecutor(self._args.jobs) as jobs:
            list(jobs.map(self._train_run, *zip(*runs, strict=True)))  # raises what a run raised

    def _train_run(self, name: str, seed: int) -> None:
        run = self._run(name, seed)
        if (run / "generator.safetensors").exists():
            return
        shards = str(self._args.shards)
        own = [flag.replace("{shards}", shards) for flag in self._settings[name]]
        flags = [f"--data.shards={shards}", *self._shared_flags, *self._more_flags, *own]
        flags += [f"--run.seed={seed}", f"--run.directory={self._args.out}"]
        program = [sys.executable, "-m", "fedgan_mpi", f"--run.name={run.name}"]
        subprocess.run(common.mpirun(self._args.ranks, *program, *flags), check=True)

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of rounds in the `stats.jsonl` of the first seed."""
        return read_stats(self._run(name, 0))[0]

    def histories(self, name: str) -> list[History]:
        """Return the history of each seed."""
        return [read_history(path) for path in self.paths(name)]

    def paths(self, name: str) -> list[Path]:
        """Return the run directory of each seed."""
        return [self._run(name, seed) for seed in range(self._args.seeds)]

    def megabytes(self, name: str) -> float:
        """Return the megabytes that a participant sends and receives in a run."""
        rounds = self.rounds(name)
        nbytes = sum(line["bytes_down"] + line["bytes_up"] for line in rounds)
        return nbytes / len(rounds[0]["participants"]) / 1e6

    def scores(self, name: str, metric: str) -> list[float]:
        """Return a value per seed. metric: the beginning of its name."""
        values = []
        for seed in range(self._args.seeds):
            _, scores = read_stats(self._run(name, seed))
            matching = [line["value"] for line in scores if line["metric"].startswith(metric)]
            values.append(statistics.mean(matching[-self._last :]))
        return values

    @property
    def out(self) -> Path:
        """The parent of the runs."""
        out: Path = self._args.out
        return out

    def _run(self, name: str, seed: int) -> Path:
        return self._args.out / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"


def take_option(flag: str, **options: Any) -> Any:
    """Return the value of a study's own option, and take it out of the command line.

    options: of `ArgumentParser.add_argument`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", **options)
    args, sys.argv[1:] = parser.parse_known_args()
    return args.value


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
