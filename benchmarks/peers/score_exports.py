"""Scores what a job of `scores` has exported: checkpoints of fedgan_mpi, generators of others.

    python score_exports.py DIRECTORY SHARDS SAMPLES

Prints [[round, Fréchet distance], …]. Both kinds have the same metric, images and noise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fedgan_mpi.comm.link import Link
from fedgan_mpi.score.command import score


def main() -> None:
    directory, shards, samples = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    run = directory / "runs" / "steps"
    scores = score_run(run) if run.exists() else score_generators(directory, shards, samples)
    print(json.dumps(sorted(scores.items())))


def score_run(run: Path) -> dict[int, float]:
    command = [sys.executable, "-m", "fedgan_mpi", "evaluate", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = map(json.loads, (run / "evaluation.jsonl").read_text().splitlines())
    return {
        line["round"]: line["value"]
        for line in lines
        if line["round"] > 0 and line["metric"].startswith("frechet")
    }


def score_generators(directory: Path, shards: Path, samples: int) -> dict[int, float]:
    link, scores = Link(), {}
    for path in directory.glob("round_*.safetensors"):
        out = path.with_name(f"{path.stem}.score.json")
        score(link, path, shards, samples=samples, out=out)
        (value,) = json.loads(out.read_text())["values"].values()
        scores[int(path.stem.removeprefix("round_"))] = value
    return scores


if __name__ == "__main__":
    main()
