"""FedGAN in fedgan_mpi: the program itself, with a callback that observes rounds.

The silent rounds and the rounds with steps are two runs in one job.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import observe
from plain_gan import JOB

import fedgan_mpi
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.comm.launcher import announced_rank


class Observer(Callback):
    """Records the rounds of the server."""

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> None:
        if announced_rank() == 0:
            ended = observe.round_end()
            if ended in (1, JOB["rounds"]):
                devices = len(metrics["participants"])
                for _ in range(devices):
                    sizes = {key: metrics[f"bytes_{key}"] // devices for key in ("down", "up")}
                    observe.message(**sizes)


def main() -> None:
    out = Path(sys.argv[1])
    silent, rounds = JOB["silent_rounds"], JOB["rounds"]
    for name, count, steps in (("silent", silent, 0), ("steps", rounds - silent, JOB["steps"])):
        if count:
            fedgan_mpi.train(config(out, name, count, steps), callbacks=[Observer()])


def config(out: Path, name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return the experiment: the job's, without scores and moving average, which peers lack."""
    return {
        "data": {"shards": JOB["shards"]},
        "model": {**JOB["model"], "ema": 0.0},
        # A peer without steps has no optimizer, either.
        "algorithm": JOB["algorithm"] | ({} if steps else {"moments": "persistent"}),
        "training": {
            "rounds": rounds,
            "discriminator_steps": steps,
            **({} if JOB["algorithm"]["name"] == "fedgan" else {"generator_steps": steps}),
            "batch_size": JOB["batch"],
            "generator_batch_size": JOB["batch"],
            "generator_lr": JOB["lr"],
            "discriminator_lr": JOB["lr"],
            "loss": "nonsaturating",
        },
        "evaluation": {"every": 0, "samples": JOB["samples"]},
        "checkpoint": {"every": JOB["export_every"], "keep_last": 10_000},
        "run": {"directory": str(out), "name": name, "seed": JOB["seed"]},
    }


if __name__ == "__main__":
    main()
