"""Reads damaged files of a run directory for a given time, and keeps the files that break a reader.

    python benchmarks/fuzz.py --seconds 600 --out findings/

The files are the configuration, the statistics, a checkpoint's manifest and states, shards, the
feature extractor and the exported generator. Each try damages one of them, by bytes or by values of
its format, corrects the checksums, and reads it as `train --resume`, `compare` or `sample` do. A
reader may return a value or raise a UserError of one line. Everything else is a finding, including
a process that dies, takes more than 4 GiB or reads one file for 20 s.

Prints JSON: tries, refusals and findings of each file. The exit status is 1 if there are findings.
"""

from __future__ import annotations

import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import common
import numpy as np
from fuzz_readers import file_names, make_readers

from fedgan_mpi.errors import UserError
from fedgan_mpi.testing.mutations import JOB, checkpoint

TIME_LIMIT, MEMORY_LIMIT = 20.0, 4 * 2**30
"""Seconds for a file, and bytes of a process."""
START_LIMIT = 60.0
"""Additional seconds for the imports of a process."""


class Counters:
    """Counters of each file in shared memory: the child process counts, the parent reads.

    total: tries of this process. current: index of the file that is being read.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        memory = mmap.mmap(-1, 8 * (2 + 3 * len(names)))
        numbers = np.frombuffer(memory, np.int64)
        self.total, self.current = numbers[:1], numbers[1:2]
        self.tries, self.refused, self.findings = numbers[2:].reshape(3, -1)

    def by_file(self) -> dict[str, dict[str, int]]:
        rows = zip(self.names, self.tries, self.refused, self.findings, strict=True)
        return {
            name: {"tries": int(tries), "refused": int(refused), "findings": int(findings)}
            for name, tries, refused, findings in rows
        }


def fuzz(run: Path, out: Path, seed: int, counters: Counters) -> None:
    """Damage and read files until the process is killed."""
    os.environ["TQDM_DISABLE"] = "1"
    stream = random.Random(seed)
    readers = make_readers(run)
    manifest = checkpoint(run) / "checkpoint.json"
    originals = {name: (run / name).read_bytes() for name in readers}
    original_manifest = manifest.read_bytes()
    assert list(readers) == counters.names
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_LIMIT, hard_limit))
    known: set[tuple[str, str]] = set()
    # Reading the configuration takes a hundred times as long as the other files.
    weights = [1 if name == "config.toml" else 8 for name in readers]
    while True:
        (index,) = stream.choices(range(len(readers)), weights)
        name = counters.names[index]
        read, damages = readers[name]
        counters.current[0] = index
        (run / name).write_bytes(stream.choice(damages)(originals[name], stream))
        try:
            read(run)
        except UserError as error:
            counters.refused[index] += 1
            if "\n" in str(error):
                keep_finding(run, name, out, error, known, counters)
        except Exception as error:
            keep_finding(run, name, out, error, known, counters)
        (run / name).write_bytes(originals[name])
        manifest.write_bytes(original_manifest)
        counters.tries[index] += 1
        counters.total[0] += 1


def keep_finding(
    run: Path,
    name: str,
    out: Path,
    error: Exception,
    known: set[tuple[str, str]],
    counters: Counters,
) -> None:
    """Write the damaged file and the traceback to `out`, once per line of the package."""
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [frame for frame in frames if "fedgan_mpi/" in frame.filename] or frames
    place = (type(error).__name__, f"{own_frames[-1].filename}:{own_frames[-1].lineno}")
    if place in known:
        return
    known.add(place)
    counters.findings[counters.names.index(name)] += 1
    kept = copy_damaged_file(run, name, out)
    kept.with_name(f"{kept.name}.txt").write_text("".join(traceback.format_exception(error)))
    print(f"{name}: {place[0]} at {place[1]}: {kept}", file=sys.stderr, flush=True)


def copy_damaged_file(run: Path, name: str, out: Path) -> Path:
    kept = out / f"{time.time_ns()}-{Path(name).name}"
    shutil.copyfile(run / name, kept)
    return kept


def supervise(run: Path, out: Path, seed: int, counters: Counters, deadline: float) -> None:
    """Fuzz in a child process until it dies, exceeds the time limit or the deadline is over.

    Death and time limit are findings.
    """
    process = os.fork()
    if process == 0:
        fuzz(run, out, seed, counters)
        os._exit(1)
    last_total, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        now = time.monotonic()
        if counters.total[0] != last_total:
            last_total, since = int(counters.total[0]), now
        is_late = now - since > TIME_LIMIT + (START_LIMIT if last_total == 0 else 0)
        if not ended and not is_late and now < deadline:
            time.sleep(0.2)
            continue
        if not ended:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        if ended or is_late:
            name = counters.names[int(counters.current[0])]
            counters.findings[int(counters.current[0])] += 1
            kept = copy_damaged_file(run, name, out)
            end = f"died with status {status}" if ended else f"took more than {TIME_LIMIT:g} s"
            print(f"{name}: the process {end}: {kept}", file=sys.stderr, flush=True)
        return


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("findings"), help="directory of the damaged files"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    with tempfile.TemporaryDirectory() as cwd:
        os.chdir(cwd)
        command = [sys.executable, "-m", "fedgan_mpi", *JOB, "--evaluation.every", "1"]
        subprocess.run(command, check=True, capture_output=True)
        run, original = Path("runs/a"), Path("runs/original")
        shutil.copytree(run, original)
        counters = Counters(file_names(run))
        start, processes = time.monotonic(), 0
        while time.monotonic() < start + args.seconds:
            shutil.rmtree(run)
            shutil.copytree(original, run)
            counters.total[0] = 0
            seed = args.seed * 1000 + processes
            supervise(run, out, seed, counters, start + args.seconds)
            processes += 1
        seconds = time.monotonic() - start
        os.chdir("/")
    files = counters.by_file()
    total = {
        key: sum(row[key] for row in files.values()) for key in ("tries", "refused", "findings")
    }
    common.print_json({"seconds": round(seconds), "processes": processes, **total, "files": files})
    sys.exit(total["findings"] > 0)


if __name__ == "__main__":
    main()
