"""Damages pictures of every format and decodes them. A failure may affect only its own picture.

    python benchmarks/fuzz_pictures.py --seconds 600

Pictures are decoded in a process with bounds, as in data_prep. Anything but a picture or one
sentence is a fault; its file is kept in the folder `faults`.
"""

from __future__ import annotations

import argparse
import io
import random
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.decode import Decoder, decode_in_processes
from data_prep.limits import Limits
from data_prep.pictures.settings import PictureSettings
from data_prep.sources import Source
from data_prep.sources.base import Picture
from data_prep.sources.image_file import decode_image_file
from fedgan_mpi.testing.mutations import mutate

FORMATS = {
    "RGBA": ["PNG", "GIF", "WEBP", "TIFF", "JPEG2000", "ICO", "SGI", "TGA"],
    "RGB": ["JPEG", "PPM", "PCX", "BMP", "MPO"],
    "I;16": ["PNG", "TIFF"],
    "I": ["TIFF"],
    "F": ["TIFF"],
}
"""Mode -> formats that hold it."""
SETTINGS = (
    PictureSettings(),
    PictureSettings(value_range=(-5, 300), is_declared=True, background=(1, 2, 3)),
)
_BLOCK = 200


class Damaged(Source):
    """Damaged copies of pictures. An index is the seed of the damage."""

    channels = 3
    class_names: list[str] = []  # noqa: RUF012

    def __init__(self, pictures: list[bytes]) -> None:
        self.originals = pictures

    def __len__(self) -> int:
        return 2**31

    @property
    def keys(self) -> range:  # type: ignore[override]
        return range(len(self))

    def image(self, index: int) -> Picture:
        name = "a.tga" if index % 7 == 0 else "a.png"
        return decode_image_file(name, self.content(index), SETTINGS[index % 2])

    def content(self, index: int) -> bytes:
        """Return the damaged file of an index."""
        stream = random.Random(index)
        kinds = stream.choices(["flip", "cut", "insert", "zero", "repeat"], [6, 1, 3, 3, 1], k=3)
        mutations = [
            # Headers are short, and most faults are in them.
            (kind, stream.random() ** 3, stream.randbytes(stream.randint(1, 8)))
            for kind in kinds[: stream.randint(1, 3)]
        ]
        return mutate(stream.choice(self.originals), mutations)


def make_pictures() -> list[bytes]:
    """Return a small picture of every mode and format."""
    ramp = np.arange(256).reshape(16, 16)
    images = {
        "RGBA": Image.fromarray(np.dstack([ramp] * 4).astype(np.uint8)),
        "RGB": Image.fromarray(np.dstack([ramp] * 3).astype(np.uint8)),
        "I;16": Image.fromarray((ramp * 16).astype(np.uint16)),
        "I": Image.fromarray((ramp * 9000 - 10**6).astype(np.int32)),
        "F": Image.fromarray((ramp / 255).astype(np.float32)),
    }
    pictures = []
    for mode, formats in FORMATS.items():
        for name in formats:
            buffer = io.BytesIO()
            images[mode].save(buffer, name)
            pictures.append(buffer.getvalue())
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    source = Damaged(make_pictures())
    limits = Limits(seconds=10, memory=2000)
    decoder = Decoder(source=source, size=16, image_shape=(3, 16, 16), limits=limits)
    found: Counter[str] = Counter()
    end = time.monotonic() + args.seconds
    blocks = (np.arange(n, n + _BLOCK) for n in range(args.seed, 2**31, _BLOCK))
    for block in decode_in_processes(2)(decoder, blocks):
        found["decoded"] += len(block.images)
        for error in block.errors:
            index, _, reason = error.partition(": ")
            is_sentence = "\n" not in error and len(error) < 400
            found["refused" if error.startswith("a.") and is_sentence else reason] += 1
            if "killed" in reason:
                Path("faults").mkdir(exist_ok=True)
                Path("faults", index).write_bytes(source.content(int(index)))
        if time.monotonic() > end:
            break
    for reason, count in found.most_common():
        print(f"{count:9,} {reason}")


if __name__ == "__main__":
    main()
