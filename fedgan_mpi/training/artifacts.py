"""What a run leaves for its user: generators and, at its end, the report. The server's."""

from __future__ import annotations

from torch import Tensor

from fedgan_mpi import __version__
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.registry import count_parameters, default_width
from fedgan_mpi.run.directory import Record
from fedgan_mpi.run.generator_file import FINAL, write_generator
from fedgan_mpi.training.setup import RunContext
from fedgan_mpi.training.state import TrainState


def export(
    rank_state: RankState,
    start: RunContext,
    progress: TrainState,
    name: str,
    round: int,
    shown: Tensor,
) -> None:
    """Write the generator with these parameters and statistics as it was after so many rounds."""
    channels, size, _ = start.manifest.image_shape
    G, model = rank_state.pair.G, start.config.model
    shares = rank_state.pair.class_shares
    about = {
        "architecture": model.architecture,
        "size": size,
        "channels": channels,
        "nz": model.nz,
        "width": default_width(model, size),
        "class_shares": None if shares is None else shares.tolist(),
        "class_names": start.manifest.class_names,
        "parameters": count_parameters(G),
        "output": "images in [-1, 1], RGB or gray, channels first",
        "round": round,
        "scores": [score for score in progress.scores if score["round"] == round],
        "dataset": start.manifest.dataset,
        "shards_sha256": start.manifest.sha256,
        "fedgan_mpi": __version__,
    }
    with rank_state.pair.generator(shown):
        write_generator(start.run, name, G, about)


def finish(
    rank_state: RankState,
    start: RunContext,
    progress: TrainState,
    record: Record,
    rounds: int,
    seconds: float,
) -> None:
    """The final generator, the report, and the last lines."""
    from fedgan_mpi.report.history import read_history
    from fedgan_mpi.report.page import write_report
    from fedgan_mpi.run.image_grids import write_film

    run = start.run
    export(rank_state, start, progress, FINAL, rounds, rank_state.evaluated_generator)
    write_film(run / "training.gif", sorted(run.glob("samples/*.png")))
    write_report(run)
    for score in progress.scores:
        floor = f"held-out real images: {score['floor']:.4g}"
        value = f"{score['metric']} {score['value']:.4g}"
        record.log(f"{value} ({floor}), {score['samples']} images")
    told = read_history(run).fairness
    if told is not None:
        record.log(told.sentence())
    record.log(f"{seconds:.1f} s, {rounds} rounds")
    record.log(str(run))
