"""What a run leaves for its user: generators and, at its end, the report. The server's."""

from __future__ import annotations

from torch import Tensor

from fedgan_mpi import __version__
from fedgan_mpi.cluster.node import Node
from fedgan_mpi.learning.networks import count_parameters, default_width
from fedgan_mpi.progress import Progress
from fedgan_mpi.run.export import FINAL, write_generator
from fedgan_mpi.run.record import Record
from fedgan_mpi.start import Start


def export(
    node: Node, start: Start, progress: Progress, name: str, round: int, shown: Tensor
) -> None:
    """Write the generator with these parameters and statistics as it was after so many rounds."""
    channels, size, _ = start.manifest.image_shape
    G, model = node.pair.G, start.config.model
    shares = node.pair.class_shares
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
    with node.pair.generator(shown):
        write_generator(start.run, name, G, about)


def finish(
    node: Node, start: Start, progress: Progress, record: Record, rounds: int, seconds: float
) -> None:
    """The final generator, the report, and the last lines."""
    from fedgan_mpi.report.history import read_history
    from fedgan_mpi.report.page import write_report
    from fedgan_mpi.run.pictures import write_film

    run = start.run
    export(node, start, progress, FINAL, rounds, node.shown_generator)
    write_film(run / "training.gif", sorted(run.glob("samples/*.png")))
    write_report(run)
    for score in progress.scores:
        floor = f"held-out real images: {score['floor']:.4g}"
        value = f"{score['metric']} {score['value']:.4g}"
        record.say(f"{value} ({floor}), {score['samples']} images")
    told = read_history(run).fairness
    if told is not None:
        record.say(told.sentence())
    record.say(f"{seconds:.1f} s, {rounds} rounds")
    record.say(str(run))
