"""Writes a run's directory and its progress bar. On device ranks it is silent, so nobody asks who
writes."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from tqdm import tqdm

from fedgan_mpi.cli.parser import PROVENANCE, config_table, read_provenance
from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import read_whole, sweep, write_complete
from fedgan_mpi.run.image_grids import grid, write_grid
from fedgan_mpi.run.lock import acquire_lock
from fedgan_mpi.run.progress_bar import make_progress_bar
from fedgan_mpi.run.stats import STATS, parse_lines, split

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DEVICES = "devices.json"


def make_run_directory(config: Config, dataset: str) -> Path:
    """A new, empty run directory. Raises UserError where its name is taken or it cannot be made."""
    parent = Path(config.run.directory)
    if config.run.name is not None:
        return _make(parent / config.run.name)
    stem, number = f"{dataset}-{config.algorithm.name}", 1
    if "schedule" in config.algorithm.traits.keys:
        stem += f"-{config.algorithm.schedule}"
    while (path := parent / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return _make(path)


def put_aside(config: Config) -> None:
    """Rename a run directory that stands where a new one is to be made; nothing is deleted.

    Raises UserError where another job writes it."""
    assert config.run.name is not None
    path, number = Path(config.run.directory) / config.run.name, 1
    if not path.is_dir():
        return
    acquire_lock(path)
    while (aside := path.with_name(f"{path.name}-unfinished-{number}")).exists():
        number += 1
    path.rename(aside)


def _make(path: Path) -> Path:
    try:
        path.mkdir(parents=True)
        (path / "samples").mkdir()
        (path / "checkpoints").mkdir()
    except FileExistsError:
        raise UserError(
            f"{path} exists already; give another --run.name, or go on with --resume {path}"
        ) from None
    except OSError as error:
        raise UserError(f"run directory {path} cannot be made: {error.strerror}") from None
    acquire_lock(path)
    return path


def write_config(run: Path, config: Config, provenance: dict[str, Any]) -> None:
    """config.toml: the experiment as resolved, and where and with what it ran; of a run that goes
    on, each time. Raises UserError where one that is there is damaged."""
    now, path = {**provenance, **_machine()}, run / "config.toml"
    if path.exists():
        last = read_provenance(run)
        now["earlier"] = [*last.pop("earlier", []), last]
    table = {**config_table(config), PROVENANCE: now}
    write_complete(path, tomli_w.dumps(table).encode())


def write_devices(run: Path, manifest: Manifest) -> None:
    """devices.json: what each device holds, so that a report needs no shards."""
    about = {
        "image_shape": manifest.image_shape,
        "class_names": manifest.class_names,
        "images": manifest.images,
        "histograms": manifest.histograms,
    }
    write_complete(run / DEVICES, (json.dumps(about) + "\n").encode())


def _machine() -> dict[str, Any]:
    packages = ("fedgan_mpi", "mpi4py", "torch", "numpy", "h5py")
    versions = {package: version(package) for package in packages if _installed(package)}
    return {
        "command": " ".join([Path(sys.executable).name, "-m", "fedgan_mpi", *sys.argv[1:]]),
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count() or 1,
        "git": _git_state(),
        "versions": {"python": platform.python_version(), **versions},
    }


def _installed(package: str) -> bool:
    try:
        version(package)
    except ImportError:
        return False
    return True


def _git_state() -> str:
    """Commit of the program, with '+' where files were changed; 'none' outside a clone. An
    environment within somebody else's clone is no part of that."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty=+", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return "none"


def _git(where: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=where, capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout.strip()


class Record:
    """Everything a run says: stats.jsonl, grids, progress bar, final lines. `run` is None where it
    is silent."""

    def __init__(
        self,
        run: Path | None,
        *,
        rounds: int,
        done: int = 0,
        tensorboard: bool = False,
    ) -> None:
        """done: rounds that a resumed run has behind it; `forget_after` comes first there."""
        self.run = run
        if run is None:
            return
        self._stats = open(run / STATS, "a", encoding="utf-8")  # noqa: SIM115 - as long as the run
        self._bar = make_progress_bar(rounds, done)
        self._shown: dict[str, str] = {}
        self._skipped: set[int] = set()
        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)

    def round(self, stats: dict[str, Any]) -> None:
        """One line of stats.jsonl, and the bar a round further."""
        if self.run is None:
            return
        self._write(stats)
        for k in set(stats.get("skipped", [])) - self._skipped:
            self._skipped.add(k)  # said once
            self.log(f"device {k} counts as absent in round {stats['round']}: it is not finite")
        for key in ("d_loss", "g_loss"):
            if stats[key] is not None:
                self._shown[key] = f"{stats[key]:.3f}"
        if self._board is not None:
            for key, value in stats.items():
                if isinstance(value, float):
                    group = "seconds" if key.startswith("seconds") else "loss"
                    self._board.add_scalar(f"{group}/{key}", value, stats["round"])
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def score(self, score: dict[str, Any]) -> None:
        """One line of stats.jsonl, and the score in the bar."""
        if self.run is None:
            return
        self._write(score)
        if self._board is not None:
            self._board.add_scalar(f"score/{score['metric']}", score["value"], score["round"])
        if score["metric"].startswith("frechet"):
            self._shown["score"] = f"{score['value']:.1f}"
            self._bar.set_postfix(self._shown, refresh=False)

    def grid(self, round: int, images: NDArray[np.uint8]) -> None:
        """samples/round_NNNNNN.png."""
        if self.run is not None:
            write_grid(self.run / "samples" / f"round_{round:06d}.png", images)
            if self._board is not None:
                picture = np.asarray(grid(images))
                form = "HWC" if picture.ndim == 3 else "HW"
                self._board.add_image("samples", picture, round, dataformats=form)

    def log(self, line: str) -> None:
        """A line on standard output, above the bar."""
        if self.run is not None:
            tqdm.write(line)
            sys.stdout.flush()

    def close(self) -> None:
        if self.run is not None:
            self._bar.close()
            if self._board is not None:
                self._board.close()
            self._stats.close()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN: a loss that is not a number is null, and the message names it.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in line.items()
        }
        self._stats.write(json.dumps(finite, allow_nan=False) + "\n")
        self._stats.flush()


def forget_after(run: Path, done: int, scored: int) -> None:
    """Drop the lines of stats.jsonl that a run makes again which has so many rounds behind it and
    was scored last after round `scored`, and files that were being written.

    Raises UserError where those that stay are damaged, or do not tell every round.
    """
    for directory in (run, run / "samples"):
        sweep(directory)
    path = run / STATS
    try:
        lines = read_whole(path).decode().splitlines(keepends=True) if path.exists() else []
        # The last line may have been cut by a kill.
        lines = [line for line in lines if line.endswith("}\n")]
        parsed = parse_lines(lines)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is damaged; restore it from a copy, or begin anew") from None
    kept = [
        (text, line)
        for text, line in zip(lines, parsed, strict=True)
        if line["round"] <= (scored if "metric" in line else done)
    ]
    rounds, _ = split(line for _, line in kept)
    if [line["round"] for line in rounds] != list(range(1, done + 1)):
        raise UserError(
            f"{path} does not tell each of the {done} rounds that the run has behind it; "
            "restore it from a copy, or begin anew"
        )
    write_complete(path, "".join(text for text, _ in kept).encode())
