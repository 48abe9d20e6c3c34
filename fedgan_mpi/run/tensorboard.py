"""Mirrors stats.jsonl and sample grids to TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedgan_mpi.data import Images, to_8_bits
from fedgan_mpi.run.image_grids import grid


class TensorBoard:
    """Event files in the directory `tensorboard` of a run."""

    def __init__(self, run: Path, done: int) -> None:
        """Hide earlier events after round `done`, which a resumed run writes again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)

    def round(self, stats: dict[str, Any]) -> None:
        """Add losses and seconds of a round."""
        for key, value in stats.items():
            if isinstance(value, float):
                group = "seconds" if key.startswith("seconds") else "loss"
                self._writer.add_scalar(f"{group}/{key}", value, stats["round"])

    def score(self, score: dict[str, Any]) -> None:
        """Add a score."""
        self._writer.add_scalar(f"score/{score['metric']}", score["value"], score["round"])

    def grid(self, round: int, images: Images) -> None:
        """Add a grid of images (N, C, H, W)."""
        pixels = to_8_bits(grid(images))
        layout = "HWC" if pixels.ndim == 3 else "HW"
        self._writer.add_image("samples", pixels, round, dataformats=layout)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
