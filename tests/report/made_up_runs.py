"""Run directories with made-up numbers, for tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tomli_w

from fedgan_mpi.cli.commands import parse
from fedgan_mpi.config.io import config_table
from fedgan_mpi.run.image_grids import write_grid

DEVICES = {
    "image_shape": [1, 32, 32],
    "class_names": ["a", "b"],
    "images": [100, 300, 20],
    "histograms": [[100, 0], [150, 150], [0, 20]],
}


def make_run(
    path: Path,
    scores: dict[int, float],
    *flags: str,
    samples: int = 100,
    metric: str = "frechet_classifier_distance-12345678",
    shards: str = "a" * 64,
) -> Path:
    """Write a run of 40 rounds with these scores, round -> value.

    A round takes 2 s, 1 MB down and 0.5 MB up.
    """
    (path / "samples").mkdir(parents=True)
    config = parse([*flags, f"--run.name={path.name}", "--training.rounds=40"]).config
    table = {**config_table(config), "provenance": {"shards_sha256": shards}}
    (path / "config.toml").write_text(tomli_w.dumps(table))
    lines = []
    for t in range(41):
        if t:
            seconds = {f"seconds_{part}": 0.5 for part in ("downlink", "local", "uplink", "server")}
            cost = {"seconds": 2.0, **seconds, "bytes_down": 1_000_000, "bytes_up": 500_000}
            present = {"participants": [1, 2, 3]}
            lines.append({"round": t, **present, "d_loss": 1 + t / 100, "g_loss": None, **cost})
        if t in scores:
            score = {"round": t, "value": scores[t], "floor": 3.0, "samples": samples}
            lines.append({"metric": metric, **score})
            lines.append({"metric": "classes_covered", **score, "value": 7.0})
            pixels = np.full((4, 1, 8, 8), t, np.uint8)
            write_grid(path / "samples" / f"round_{t:06d}.png", pixels)
    (path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def add_devices(run: Path, *participants: tuple[int, ...]) -> Path:
    """Add devices.json to a run, and let these participants take the rounds in turn."""
    (run / "devices.json").write_text(json.dumps(DEVICES))
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        if "metric" not in line:
            line["participants"] = list(participants[(line["round"] - 1) % len(participants)])
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
