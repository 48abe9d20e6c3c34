"""Event files of TensorBoard in the directory `tensorboard` of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgan_mpi.data import Images, to_8_bits
from fedgan_mpi.run.image_grids import grid
from fedgan_mpi.trackers import Tracker, numbers_of


class TensorBoard(Tracker):
    """TensorBoard's event files, in the run directory."""

    def __init__(self) -> None:
        self._writer: Any = None

    def on_run_begin(self, run: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        # Hides events after round `done`, which a resumed run writes again.
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> None:
        for name, value in numbers_of(metrics).items():
            self._writer.add_scalar(name, value, round)

    def on_score(self, scores: Sequence[Mapping[str, Any]]) -> None:
        for score in scores:
            self._writer.add_scalar(f"score/{score['metric']}", score["value"], score["round"])

    def on_samples(self, round: int, images: Images) -> None:
        pixels = to_8_bits(grid(images))
        layout = "HWC" if pixels.ndim == 3 else "HW"
        self._writer.add_image("samples", pixels, round, dataformats=layout)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
