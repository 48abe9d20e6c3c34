"""Jobs with several settings and seeds, one after the other, and the scores they end with."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgan_mpi.run.stats import read_stats


class Study:
    """A run for each setting and seed. What is there already is not trained again.

    settings: name -> flags. common: flags of all. last: how many of a run's last scores make one
    value, their mean.
    """

    def __init__(
        self,
        description: str | None,
        settings: Mapping[str, Sequence[str]],
        common: Sequence[str],
        *,
        seeds: int,
        last: int = 1,
    ) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--shards", type=Path, required=True)
        parser.add_argument("--out", type=Path, required=True, help="where the run directories are")
        parser.add_argument("--seeds", type=int, default=seeds)
        parser.add_argument("--ranks", type=int, default=3)
        self._args = parser.parse_args()
        self._settings, self._common, self._last = settings, common, last

    def train(self) -> None:
        for seed in range(self._args.seeds):
            for name, options in self._settings.items():
                run = self._run(name, seed)
                if not (run / "generator.safetensors").exists():
                    command = ["mpirun", "-n", str(self._args.ranks), sys.executable]
                    command += ["-m", "fedgan_mpi", f"--data.shards={self._args.shards}"]
                    command += [*self._common, *options, f"--run.seed={seed}"]
                    command += [f"--run.directory={self._args.out}", f"--run.name={run.name}"]
                    subprocess.run(command, check=True)

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """Of the first seed's run, the lines of stats.jsonl."""
        return read_stats(self._run(name, 0))[0]

    def megabytes(self, name: str) -> float:
        """What a participant sends and receives in a whole run."""
        rounds = self.rounds(name)
        sent = sum(line["bytes_down"] + line["bytes_up"] for line in rounds)
        return sent / len(rounds[0]["participants"]) / 1e6

    def scores(self, name: str, metric: str) -> list[float]:
        """A value a seed, of the metric that begins so."""
        values = []
        for seed in range(self._args.seeds):
            _, scores = read_stats(self._run(name, seed))
            told = [score["value"] for score in scores if score["metric"].startswith(metric)]
            values.append(statistics.mean(told[-self._last :]))
        return values

    def _run(self, name: str, seed: int) -> Path:
        return self._args.out / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """As Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
