"""Decoding by data_prep against bare Pillow or pydicom with a resize, on the same cores, in pairs
within one run; and the peak memory of preparing many images.

    python benchmarks/data_prep_speed.py speed            # needs no data set: it writes its own
    python benchmarks/data_prep_speed.py memory --images 200000

The pictures are smooth with some noise, so that their JPEG files are as large as CelebA's and
RSNA's are.
"""

from __future__ import annotations

import argparse
import os
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

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import originals
from PIL import Image

from data_prep.decode import cores, decode_in_processes
from data_prep.prepare import prepare
from data_prep.sources import SOURCES

ROOT = Path(__file__).parents[1]
SIZE = 64


def photograph(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    stream = np.random.default_rng(seed)
    coarse = stream.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = np.clip(image + stream.normal(size=image.shape) * 6, 0, 255).astype(np.uint8)
    return noisy if channels == 3 else noisy[..., 0]


def write_celeba(directory: Path, count: int, kinds: int) -> None:
    """As many faces, of so many kinds, the others links to them."""
    originals.celeba(directory, 6)
    shutil.rmtree(directory / "img_align_celeba")
    (directory / "img_align_celeba").mkdir()
    rows, split = [], []
    for n in range(count):
        path = directory / "img_align_celeba" / f"{n + 1:06d}.jpg"
        if n < kinds:
            path.write_bytes(originals.jpeg(photograph(218, 178, 3, n)))
        else:
            os.link(path.with_name(f"{n % kinds + 1:06d}.jpg"), path)
        rows.append(f"{path.name}  1 -1  1 -1")
        split.append(f"{path.name} {2 * (n % 8 == 7)}")
    header = f"{count}\n{' '.join(originals.ATTRIBUTES)}\n"
    (directory / "list_attr_celeba.txt").write_text(header + "\n".join(rows) + "\n")
    (directory / "list_eval_partition.txt").write_text("\n".join(split) + "\n")


def write_rsna(directory: Path, count: int) -> None:
    names = originals.rsna(directory, count)
    for n, name in enumerate(names):
        content = originals.dicom(photograph(1024, 1024, 1, n), compressed=True)
        (directory / "stage_2_train_images" / f"{name}.dcm").write_bytes(content)


def bare_pillow(paths: list[Path]) -> None:
    for path in paths:
        image = Image.open(path).convert("RGB")
        np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(0, 20, 178, 198)))


def bare_pydicom(paths: list[Path]) -> None:
    import pydicom

    for path in paths:
        image = Image.fromarray(pydicom.dcmread(path).pixel_array)
        np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def speed(pairs: int, images: int) -> None:
    processes = cores()
    print(f"{processes} processes, {pairs} pairs a data set, {SIZE} pixels")
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
                    seconds_bare(bare, paths, processes),
                    seconds_ours(dataset, directory / dataset, directory / "out", processes),
                )
                for _ in range(pairs)
            ]
            ratios = [theirs / ours for theirs, ours in measured]
            rates = [len(paths) / seconds for seconds in map(min, zip(*measured, strict=True))]
            print(
                f"{dataset}: {len(paths)} images, bare {rates[0]:,.0f}/s, data_prep to finished "
                f"shards {rates[1]:,.0f}/s (best); ratio in each pair "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}, median "
                f"{statistics.median(ratios):.2f} (wanted: 0.80)"
            )


def seconds_bare(bare: Callable[[list[Path]], None], paths: list[Path], processes: int) -> float:
    """Only reading, decoding and resizing; the pixels go nowhere."""
    parts = [paths[start : start + 64] for start in range(0, len(paths), 64)]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(bare, [paths[:1]] * processes))  # the processes are there, imports done
        began = time.perf_counter()
        list(pool.map(bare, parts))
        return time.perf_counter() - began


def seconds_ours(dataset: str, source: Path, out: Path, processes: int) -> float:
    """From the files to synced shards with their checksums, reading the labels included."""
    began = time.perf_counter()
    prepare(
        SOURCES[dataset](source),
        out,
        devices=8,
        features="none",
        decode=decode_in_processes(processes),
    )
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def memory(images: int) -> None:
    """Of the whole command, in processes of its own; this one has the data set to write."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_celeba(directory / "celeba", images, min(images, 500))
        command = [sys.executable, "-m", "data_prep", "celeba"]
        command += ["--source", f"{directory / 'celeba'}", "--out", f"{directory / 'out'}"]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.perf_counter() - began
        # KiB on Linux; of all processes that have ended, the largest one.
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
        print(f"{seconds:.0f} s, at most {most:.0f} MB in a process (wanted: 500 MB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.pairs, arguments.images)
    else:
        memory(arguments.images)


if __name__ == "__main__":
    main()
