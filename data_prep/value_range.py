"""The range of a data set's values: declared by the user, or found in a first pass over the images.

The pass is made only if an image has more than 8 bits and its file does not say which values are
black and white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from data_prep.decode import Decode
from data_prep.decoder import DecodedBlock, Decoder
from data_prep.pictures.settings import Depth, PictureSettings
from data_prep.sources.base import Source
from fedgan_mpi.errors import UserError


def set_pictures(
    source: Source,
    value_range: tuple[float, float] | None,
    background: tuple[int, int, int] | None,
    depth: Depth = 8,
) -> None:
    """Set how the images of a source are decoded.

    Raises UserError if an option would have no effect.
    """
    may_be_deep = source.reads_pictures or source.is_deep
    for flag, is_given, has_effect, reason in (
        ("--range", value_range is not None, may_be_deep, "have 8 bits"),
        ("--depth 16", depth == 16, may_be_deep, "have 8 bits"),
        ("--background", background is not None, source.reads_pictures, "have no transparency"),
    ):
        if is_given and not has_effect:
            raise UserError(
                f"{flag} has no effect on {source.name}, whose images {reason}; remove {flag}"
            )
    if may_be_deep:
        settings = PictureSettings(
            value_range=value_range,
            is_declared=value_range is not None,
            needs_range=True,
            depth=depth,
        )
        source.pictures = replace(settings, background=background) if background else settings


def find_range(decoder: Decoder, decode: Decode, show_progress: bool) -> tuple[float, float]:
    """Return the least and the greatest value of all images of more than 8 bits."""
    measuring = replace(decoder, measures=True)
    blocks = decoder.blocks(np.arange(len(decoder.source)))
    total = sum(len(block) for block in blocks)
    disable = None if show_progress else True
    ends: list[tuple[float, float]] = []
    with tqdm(total=total, unit="image", desc="range of values", disable=disable) as bar:
        for block in decode(measuring, blocks):
            bar.update(len(block.indices))
            if block.value_range is not None:
                ends.append(block.value_range)
    if not ends:  # an image needs a range, but the pass has read none
        raise UserError(f"{decoder.source.name} has no finite value; name the range with --range")
    return min(low for low, _ in ends), max(high for _, high in ends)


class Notes:
    """Collects what is unusual about readable images."""

    def __init__(self) -> None:
        self._images = self._frames = 0
        self._narrow: list[tuple[int, int, int]] = []

    def add(self, block: DecodedBlock) -> None:
        """Count the images of a decoded block."""
        self._images += len(block.images)
        self._frames += block.several_frames
        self._narrow += block.narrow

    def sentences(self, source: Source) -> Sequence[str]:
        """Return one warning for each kind."""
        found = []
        if self._frames:
            found.append(
                f"{_files(self._frames)} several frames or pages; only the first of each is used"
            )
        if self._narrow:
            index, *shades = self._narrow[0]
            low, high = source.pictures.value_range or (0, 255)
            white = 2**source.pictures.depth - 1
            least, greatest = (low + (high - low) * shade / white for shade in shades)
            found.append(
                f"{len(self._narrow):,} of {self._images:,} images use less than 5 % of the range "
                f"{low:g} to {high:g}, such as {source.keys[index]}, about {least:.4g} to "
                f"{greatest:.4g}"
                + ("; --range LOW,HIGH names another" * (source.reads_pictures or source.is_deep))
            )
        return found


def _files(count: int) -> str:
    return "1 file has" if count == 1 else f"{count:,} files have"
