"""Feeds what reads files with damaged ones for a stated time, and keeps whatever breaks a reader.

    python benchmarks/fuzz.py --seconds 600 --out findings/

The files are those of a run directory: its configuration, its record, a checkpoint's manifest and
states, shards, the scores' extractor, and the exported generator. Each try damages one of them, by
bytes or where its format allows by values, with checksums made right again, and reads it as
`train --resume`, `compare` or `sample` do. A reader may give a value or a UserError of one line.
Anything else is a finding, as are a process that dies, takes more than 4 GiB, or 20 s over a file.

Prints tries, refusals and findings of each file as JSON; exits with 1 where there are findings.
"""

from __future__ import annotations

import argparse
import json
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
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_bad_inputs import JOB, checkpoint, mutate, read_configuration, read_shards, rehash

import fedgan_mpi.training.environment  # noqa: F401 - before torch is loaded
from fedgan_mpi.errors import UserError

Reader = Callable[[Path], object]
Damage = Callable[[bytes, random.Random], bytes]
STUCK, MEMORY = 20.0, 4 * 2**30
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 10**400, 1e308, float("nan"), "", "x", "../../x", "\x00", "é" * 99,
    [], {}, [[]], {"": {}},
)  # fmt: skip


# ---------------------------------------------------------------- damage


def damage_bytes(content: bytes, dice: random.Random) -> bytes:
    kinds = ["flip", "cut", "insert", "zero", "repeat"]
    weights = [6, 1, 3, 3, 1]
    changes = [
        (kind, dice.random(), dice.randbytes(dice.randint(1, 8)))
        for kind in dice.choices(kinds, weights, k=dice.randint(1, 4))
    ]
    return mutate(content, changes)


def damage_value(value: Any, dice: random.Random) -> Any:
    """The same JSON with one node another."""
    inner = isinstance(value, dict | list) and len(value) > 0
    if not inner or dice.random() < 0.1:
        return dice.choice(HOSTILE)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, copy = dice.choice(keys), value.copy()
    kind = dice.random()
    if kind < 0.1:
        del copy[key]
    elif kind < 0.15 and isinstance(copy, dict):
        copy[str(dice.choice(HOSTILE))] = copy.pop(key)
    else:
        copy[key] = damage_value(copy[key], dice)
    return copy


def damage_json(content: bytes, dice: random.Random) -> bytes:
    return json.dumps(damage_value(json.loads(content), dice)).encode()


def damage_lines(content: bytes, dice: random.Random) -> bytes:
    """A line of JSON lines."""
    lines = content.splitlines(keepends=True)
    place = dice.randrange(len(lines))
    lines[place] = damage_json(lines[place], dice) + b"\n"
    return b"".join(lines)


def damage_header(content: bytes, dice: random.Random) -> bytes:
    """What safetensors say of their tensors: another value, or other bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = dice.choice([damage_json, damage_bytes])(content[8:start], dice)
    return len(header).to_bytes(8, "little") + header + content[start:]


# ---------------------------------------------------------------- readers


def readers(run: Path) -> dict[str, tuple[Reader, list[Damage]]]:
    """File of a run -> what reads it, and how it is damaged. Imports MPI."""
    from mpi4py import MPI

    from fedgan_mpi.checkpoint.format import load_checkpoint, read_manifest
    from fedgan_mpi.cli.parser import parse_train
    from fedgan_mpi.comm.link import Link
    from fedgan_mpi.data import read_shard
    from fedgan_mpi.evaluation.features import read_extractor
    from fedgan_mpi.federation.networks import build_networks
    from fedgan_mpi.federation.rank import build_rank_state
    from fedgan_mpi.report import history
    from fedgan_mpi.report.history import read_history
    from fedgan_mpi.report.watch import describe
    from fedgan_mpi.run.directory import forget_after
    from fedgan_mpi.run.generator_file import load
    from fedgan_mpi.training.resume import progress_of
    from fedgan_mpi.training.setup import start

    link = Link(MPI.COMM_SELF)
    state = start(link, parse_train(["--resume", str(run), "--training.rounds", "3"]))
    shape, images = state.manifest.image_shape, [sum(state.manifest.images)]
    histograms = [np.sum(state.manifest.histograms, 0).tolist()]
    pair = build_networks(state.config, shape, histogram=histograms[0])
    rank_state = build_rank_state(link, state.config, pair, state.shards, images, histograms)

    def resume(run: Path) -> object:
        manifest = read_manifest(checkpoint(run))
        progress_of(manifest, state)
        load_checkpoint(rank_state, manifest)
        return manifest

    def resume_hashed(run: Path) -> object:
        rehash(run, "server.safetensors", "device_0001.safetensors")
        return resume(run)

    def record(run: Path) -> object:
        for read in (read_history, partial(describe, rounds=3, ended=False)):
            try:
                read(run)
            except UserError as error:
                assert "\n" not in str(error)
        forget_after(run, done=2, scored=2)
        return run

    def heldout(run: Path) -> object:
        return read_shard(run / "shards" / "heldout.h5", image_shape=shape)

    def extractor(run: Path) -> object:
        assert name is not None
        return read_extractor(run / "shards" / name)

    def generator(run: Path) -> object:
        return load(run / "generator.safetensors")

    history.read_config = cache(history.read_config)  # which takes a hundred times as long
    name = state.manifest.features
    of_bytes: list[Damage] = [damage_bytes]
    of_json: list[Damage] = [damage_json, damage_json, damage_bytes]
    of_tensors: list[Damage] = [damage_header, damage_header, damage_bytes]
    return {
        "config.toml": (read_configuration, of_bytes),
        "stats.jsonl": (record, [damage_lines, damage_lines, damage_bytes]),
        "checkpoints/round_000002/checkpoint.json": (resume, of_json),
        "checkpoints/round_000002/server.safetensors": (resume_hashed, of_tensors),
        "checkpoints/round_000002/device_0001.safetensors": (resume_hashed, of_tensors),
        "shards/shards.json": (read_shards, of_json),
        "shards/device_0001.h5": (read_shards, of_bytes),
        "shards/heldout.h5": (heldout, of_bytes),
        f"shards/{name}": (extractor, of_tensors),
        "generator.json": (generator, of_json),
        "generator.safetensors": (generator, of_tensors),
    }


# ---------------------------------------------------------------- a process that may die


class LocalMetrics:
    """Numbers that a child counts and its parent reads, shared."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        memory = mmap.mmap(-1, 8 * (2 + 3 * len(names)))
        numbers = np.frombuffer(memory, np.int64)
        self.clock, self.now = numbers[:1], numbers[1:2]
        self.tries, self.refused, self.findings = numbers[2:].reshape(3, -1)


def child(run: Path, out: Path, seed: int, metrics: LocalMetrics) -> None:
    """Damage and read, for ever."""
    os.environ["TQDM_DISABLE"] = "1"
    dice = random.Random(seed)
    table = readers(run)
    manifest = checkpoint(run) / "checkpoint.json"
    whole = {name: (run / name).read_bytes() for name in table}
    manifest_whole = manifest.read_bytes()
    assert list(table) == metrics.names
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
    known: set[tuple[str, str]] = set()
    # The configuration's reader takes a hundred times as long as the others.
    weights = [1 if name == "config.toml" else 8 for name in table]
    while True:
        (place,) = dice.choices(range(len(table)), weights)
        name = metrics.names[place]
        read, ways = table[name]
        metrics.now[0] = place
        (run / name).write_bytes(dice.choice(ways)(whole[name], dice))
        try:
            read(run)
        except UserError as error:
            metrics.refused[place] += 1
            if "\n" in str(error):
                _keep(run, name, out, error, known, metrics)
        except Exception as error:
            _keep(run, name, out, error, known, metrics)
        (run / name).write_bytes(whole[name])
        manifest.write_bytes(manifest_whole)
        metrics.tries[place] += 1
        metrics.clock[0] += 1


def _keep(
    run: Path,
    name: str,
    out: Path,
    error: Exception,
    known: set[tuple[str, str]],
    metrics: LocalMetrics,
) -> None:
    """A finding: its file and traceback, one for each place in the program."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "fedgan_mpi/" in frame.filename] or frames
    where = (type(error).__name__, f"{ours[-1].filename}:{ours[-1].lineno}")
    if where in known:
        return
    known.add(where)
    metrics.findings[metrics.names.index(name)] += 1
    kept = out / f"{time.time_ns()}-{Path(name).name}"
    shutil.copyfile(run / name, kept)
    kept.with_name(f"{kept.name}.txt").write_text("".join(traceback.format_exception(error)))
    print(f"{name}: {where[0]} at {where[1]}: {kept}", file=sys.stderr, flush=True)


def watch_over(run: Path, out: Path, seed: int, metrics: LocalMetrics, until: float) -> None:
    """One child's life. What kills it, or makes it hang, is a finding."""
    process = os.fork()
    if process == 0:
        child(run, out, seed, metrics)
        os._exit(1)
    last, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        now = time.monotonic()
        if metrics.clock[0] != last:
            last, since = int(metrics.clock[0]), now
        stuck = now - since > STUCK + (60 if last == 0 else 0)  # it imports first
        if not ended and not stuck and now < until:
            time.sleep(0.2)
            continue
        if not ended:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        if ended or stuck:
            name = metrics.names[int(metrics.now[0])]
            metrics.findings[int(metrics.now[0])] += 1
            kept = out / f"{time.time_ns()}-{Path(name).name}"
            shutil.copyfile(run / name, kept)
            what = f"died with status {status}" if ended else f"took more than {STUCK:g} s"
            print(f"{name}: the process {what}: {kept}", file=sys.stderr, flush=True)
        return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("findings"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    out = asked.out.resolve()
    with tempfile.TemporaryDirectory() as cwd:
        os.chdir(cwd)
        command = [sys.executable, "-m", "fedgan_mpi", *JOB, "--evaluation.every", "1"]
        subprocess.run(command, check=True, capture_output=True)
        run, copy = Path("runs/a"), Path("runs/whole")
        shutil.copytree(run, copy)
        features = json.loads((run / "shards/shards.json").read_text())["features"]
        metrics = LocalMetrics([
            "config.toml", "stats.jsonl", "checkpoints/round_000002/checkpoint.json",
            "checkpoints/round_000002/server.safetensors",
            "checkpoints/round_000002/device_0001.safetensors",
            "shards/shards.json", "shards/device_0001.h5", "shards/heldout.h5",
            f"shards/{features}", "generator.json", "generator.safetensors",
        ])  # fmt: skip
        began, lives = time.monotonic(), 0
        while time.monotonic() < began + asked.seconds:
            shutil.rmtree(run)
            shutil.copytree(copy, run)
            metrics.clock[0] = 0
            watch_over(run, out, asked.seed * 1000 + lives, metrics, began + asked.seconds)
            lives += 1
        seconds = time.monotonic() - began
        os.chdir("/")
    files = {
        name: {"tries": int(tries), "refused": int(refused), "findings": int(findings)}
        for name, tries, refused, findings in zip(
            metrics.names, metrics.tries, metrics.refused, metrics.findings, strict=True
        )
    }
    total = {
        key: sum(row[key] for row in files.values()) for key in ("tries", "refused", "findings")
    }
    print(json.dumps({"seconds": round(seconds), "processes": lives, **total, "files": files}))
    sys.exit(total["findings"] > 0)


if __name__ == "__main__":
    main()
