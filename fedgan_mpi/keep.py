"""What a run leaves behind while it trains: scores, grids, generators, checkpoints, and its
report."""

from __future__ import annotations

from typing import Any

from fedgan_mpi import __version__
from fedgan_mpi.cluster.link import AgreedError
from fedgan_mpi.cluster.node import Node
from fedgan_mpi.evaluation.evaluate import Scorer, generate
from fedgan_mpi.learning.networks import count_parameters, default_width
from fedgan_mpi.privacy import epsilon
from fedgan_mpi.run.checkpoint import save_checkpoint
from fedgan_mpi.run.export import BEST, FINAL, write_generator
from fedgan_mpi.run.record import Record
from fedgan_mpi.start import Start, scored_samples
from fedgan_mpi.streams import Purpose

GRID_IMAGES = 64


class Keeper:
    """Keeps at the rounds where it is due. `progress` is what a resumed run must remember."""

    def __init__(self, node: Node, start: Start, record: Record, progress: dict[str, Any]) -> None:
        """Collective: adds up the statistics of the real images."""
        self.node, self.start, self.record, self.progress = node, start, record, progress
        self.scorer: Scorer | None = None
        features = start.manifest.features
        samples = node.link.from_server(lambda: scored_samples(start.config, start.heldout))
        if features is not None and samples:
            self.scorer = Scorer(node, start.directory / features, start.heldout, samples)
        else:
            missing = "no feature extractor" if features is None else "no held-out images"
            record.say(f"{start.directory} has {missing}, so there are no scores")

    def after(self, round: int, last: int) -> None:
        """Collective. Keep what is due after so many finished rounds; all of it after the last."""
        if round in (0, last) or _is_due(round, self.start.config.evaluation.every):
            self._look(round)
        if round == last or _is_due(round, self.start.config.checkpoint.every):
            self._check_finite(round)
            keep_last = self.start.config.checkpoint.keep_last
            save_checkpoint(self.node, self.start.run, round, self.progress, keep_last)

    def _check_finite(self, round: int) -> None:
        """Raises AgreedError rather than let a checkpoint of NaN push out a good one."""
        server = self.node.server
        broken = server is not None and not server.pair.flat.vector.isfinite().all()
        if self.node.link.any(bool(broken)):
            raise AgreedError(
                f"parameters are not finite after round {round} of {self.start.run}; start anew "
                "with lower learning rates, or look at the shards"
            )

    def _look(self, round: int) -> None:
        """Score and draw the generator; export it where it is the best so far."""
        spent = self._privacy_spent(round)
        if self.scorer is not None:
            self.progress["scores"] = self.scorer.score(round)
            for score in self.progress["scores"]:
                self.record.score({**score, **spent})
            value, best = self.progress["scores"][0]["value"], self.progress["best"]
            if best is None or value < best["value"]:
                self.progress["best"] = {"round": round, "value": value}
                self._export(BEST, round)
        if self.node.link.is_server:
            with self.node.shown_generator():
                self.record.grid(round, generate(self.node, GRID_IMAGES, Purpose.GRID, 0))

    def _privacy_spent(self, round: int) -> dict[str, float]:
        """ε after so many rounds, said aloud; nothing where the algorithm promises none."""
        config = self.start.config
        if config.algorithm.name != "dp_fedavg_gan" or not self.node.link.is_server:
            return {}
        value = epsilon(config, self.node.participation, round)
        delta = config.algorithm.delta
        self.record.say(f"after {round} rounds ε = {value:.4g} for a device (δ = {delta:g})")
        return {"epsilon": value, "delta": delta}

    def finish(self, seconds: float) -> None:
        """The final generator, the report, and the last lines; the server's."""
        if not self.node.link.is_server:
            return
        from fedgan_mpi.report.page import write_report

        rounds = self.start.config.training.rounds
        self._export(FINAL, rounds)
        write_report(self.start.run)
        for score in self.progress["scores"]:
            floor = f"held-out real images: {score['floor']:.4g}"
            value = f"{score['metric']} {score['value']:.4g}"
            self.record.say(f"{value} ({floor}), {score['samples']} images")
        self.record.say(f"{seconds:.1f} s, {rounds} rounds")
        self.record.say(str(self.start.run))

    def _export(self, name: str, round: int) -> None:
        if not self.node.link.is_server:
            return
        channels, size, _ = self.start.manifest.image_shape
        G, model = self.node.pair.G, self.start.config.model
        shares = self.node.pair.class_shares
        about = {
            "architecture": model.architecture,
            "size": size,
            "channels": channels,
            "nz": model.nz,
            "width": default_width(model, size),
            "class_shares": None if shares is None else shares.tolist(),
            "class_names": self.start.manifest.class_names,
            "parameters": count_parameters(G),
            "output": "images in [-1, 1], RGB or gray, channels first",
            "round": round,
            "scores": [score for score in self.progress["scores"] if score["round"] == round],
            "dataset": self.start.manifest.dataset,
            "shards_sha256": self.start.manifest.sha256,
            "fedgan_mpi": __version__,
        }
        with self.node.shown_generator():
            write_generator(self.start.run, name, G, about)


def _is_due(round: int, every: int) -> bool:
    return every > 0 and round % every == 0
