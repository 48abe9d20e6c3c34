"""Files that a run leaves for its user: generators and, at its end, the report. On the server."""

from __future__ import annotations

from torch import Tensor

from fedgan_mpi import __version__
from fedgan_mpi.config.model import default_width
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.registry import count_parameters
from fedgan_mpi.run.generator_file import FINAL, write_generator
from fedgan_mpi.run.image_grids import grids_of, write_animation
from fedgan_mpi.run.output import optional
from fedgan_mpi.run.record import Record
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState


def export(
    rank_state: RankState,
    context: RunContext,
    state: TrainState,
    name: str,
    round: int,
    generator: Tensor,
) -> None:
    """Write a generator file. generator: parameters and statistics after `round` rounds."""
    channels, *sides = context.manifest.image_shape
    G, model = rank_state.pair.G, context.config.model
    width = model.width or default_width(model.architecture, min(sides))
    shares = rank_state.pair.class_shares
    about = {
        "architecture": model.architecture,
        "options": model.options,
        "image_shape": list(context.manifest.image_shape),
        "dtype": context.manifest.dtype,
        "range": context.manifest.range,
        "size": sides[0],
        "channels": channels,
        "nz": model.nz,
        "width": width if model.is_built_in else None,
        "class_shares": None if shares is None else shares.tolist(),
        "class_names": context.manifest.class_names,
        "parameters": count_parameters(G),
        "output": "images in [-1, 1], RGB or gray, channels first",
        "round": round,
        "scores": [score for score in state.scores if score["round"] == round],
        "dataset": context.manifest.dataset,
        "shards_sha256": context.manifest.sha256,
        "fedgan_mpi": __version__,
    }
    with rank_state.pair.generator(generator):
        write_generator(context.run, name, G, about)


def write_final(
    rank_state: RankState,
    context: RunContext,
    state: TrainState,
    record: Record,
    rounds: int,
    seconds: float,
) -> None:
    """Write the final generator and the report, and log the final scores and the run's path.

    Without its generator the run fails. Without a report or a film it does not.
    """
    run = context.run
    export(rank_state, context, state, FINAL, rounds, rank_state.evaluated_generator)
    with optional(run / "training.gif", record.log):
        write_animation(run / "training.gif", grids_of(run))
    with optional(run / "report.html", record.log):
        from fedgan_mpi.report.page import write_report

        write_report(run)
    for score in state.scores:
        floor = f"held-out real images: {score['floor']:.4g}"
        value = f"{score['metric']} {score['value']:.4g}"
        record.log(f"{value} ({floor}), {score['samples']} images")
    with optional("the summary of participation", record.log):
        from fedgan_mpi.report.history import read_history

        fairness = read_history(run).fairness
        if fairness is not None:
            record.log(fairness.summary())
    record.log(f"{seconds:.1f} s, {rounds} rounds")
    record.log(str(run))
