"""Measures data_prep: its speed against bare Pillow or pydicom, and its peak memory.

    python benchmarks/data_prep_speed.py speed            # writes its own images
    python benchmarks/data_prep_speed.py memory --images 200000

`speed` compares decoding and resizing alone with data_prep to finished shards, on the same number
of processes. Both alternate in one run, and each pair gives a ratio. Limit: 0.80 of the bare rate.
`memory` runs the whole command. Limit: 500 MB per process.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common
import numpy as np
from PIL import Image
from synthetic_data import write_celeba, write_rsna

from data_prep.decode import available_cores, decode_in_processes
from data_prep.plugins import make_source
from data_prep.prepare import prepare

SIZE = 64
"""Pixels of the prepared images."""


def bare_pillow(paths: list[Path]) -> None:
    for path in paths:
        image = Image.open(path).convert("RGB")
        np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(0, 20, 178, 198)))


def bare_pydicom(paths: list[Path]) -> None:
    import pydicom

    for path in paths:
        image = Image.fromarray(pydicom.dcmread(path).pixel_array)
        np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def measure_speed(pairs: int, images: int) -> None:
    processes = available_cores()
    print(f"{processes} processes, {pairs} pairs per data set, {SIZE} pixels")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_celeba(directory / "celeba", images, min(images, 2000))
        write_rsna(directory / "rsna", max(images // 10, 20))
        for dataset, bare, pattern in (
            ("celeba", bare_pillow, "img_align_celeba/*.jpg"),
            ("rsna", bare_pydicom, "stage_2_train_images/*.dcm"),
        ):
            paths = sorted((directory / dataset).glob(pattern))
            measured = [
                (
                    bare_seconds(bare, paths, processes),
                    prepare_seconds(dataset, directory / dataset, directory / "out", processes),
                )
                for _ in range(pairs)
            ]
            ratios = [bare_time / prepare_time for bare_time, prepare_time in measured]
            rates = [len(paths) / seconds for seconds in map(min, zip(*measured, strict=True))]
            print(
                f"{dataset}: {len(paths)} images; best rates: bare {rates[0]:,.0f}/s, data_prep "
                f"{rates[1]:,.0f}/s; ratio of each pair "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}, median "
                f"{statistics.median(ratios):.2f} (limit: 0.80)"
            )


def bare_seconds(bare: Callable[[list[Path]], None], paths: list[Path], processes: int) -> float:
    """Return the seconds to read, decode and resize. The pixels are discarded."""
    parts = [paths[start : start + 64] for start in range(0, len(paths), 64)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(bare, [paths[:1]] * processes))  # starts the processes
        start = time.perf_counter()
        list(pool.map(bare, parts))
        return time.perf_counter() - start


def prepare_seconds(dataset: str, source: Path, out: Path, processes: int) -> float:
    """Return the seconds from the original files to shards on disk, with their checksums."""
    start = time.perf_counter()
    prepare(
        make_source(dataset, source, {}),
        out,
        devices=8,
        features="none",
        decode=decode_in_processes(processes),
    )
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def measure_memory(images: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_celeba(directory / "celeba", images, min(images, 500))
        command = [sys.executable, "-m", "data_prep", "celeba"]
        command += ["--source", f"{directory / 'celeba'}", "--out", f"{directory / 'out'}"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        # The largest process that has ended, in KiB on Linux.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
        print(f"{seconds:.0f} s, at most {peak:.0f} MB per process (limit: 500 MB)")


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("measurement", choices=("speed", "memory"))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each kind")
    args = parser.parse_args()
    if args.measurement == "speed":
        measure_speed(args.pairs, args.images)
    else:
        measure_memory(args.images)


if __name__ == "__main__":
    main()
