"""Creates run directories and writes the files that describe a run: config.toml, devices.json."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import tomli_w

from fedgan_mpi.config import Config
from fedgan_mpi.config.io import PROVENANCE, config_table, read_provenance
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors, write_complete
from fedgan_mpi.run.lock import acquire_lock
from fedgan_mpi.run.provenance import describe_machine

DEVICES = "devices.json"


def make_run_directory(config: Config, dataset: str) -> Path:
    """Create and lock a run directory.

    If `run.name` is None, the name is the first free one of DATASET-ALGORITHM, DATASET-ALGORITHM-2,
    and so on. Raises UserError if `run.name` is taken or the directory cannot be created.
    """
    parent = Path(config.run.directory)
    if config.run.name is not None:
        return _make(parent / config.run.name)
    # The name of an algorithm may be a path, FILE.py:Name.
    stem, number = re.sub(r"[^\w.:-]+", "-", f"{dataset}-{config.algorithm.name}")[:100], 1
    if "schedule" in config.algorithm.traits.keys:
        stem += f"-{config.algorithm.schedule}"
    while os.path.lexists(path := parent / (stem if number == 1 else f"{stem}-{number}")):
        number += 1
    return _make(path)


def put_aside(config: Config) -> None:
    """Rename an existing run directory of this name to NAME-unfinished-N. Nothing is deleted.

    Raises UserError if another job is writing it.
    """
    assert config.run.name is not None
    path, number = Path(config.run.directory) / config.run.name, 1
    if not os.path.isdir(path):
        return
    acquire_lock(path)
    while os.path.lexists(aside := path.with_name(f"{path.name}-unfinished-{number}")):
        number += 1
    with explain_write_errors(path):
        path.rename(aside)


def _make(path: Path) -> Path:
    try:
        path.mkdir(parents=True)
        (path / "samples").mkdir()
        (path / "checkpoints").mkdir()
    except FileExistsError:
        raise UserError(
            f"{path} exists already; use another --run.name, or resume with --resume {path}"
        ) from None
    except OSError as error:
        raise UserError(f"run directory {path} cannot be created: {error.strerror}") from None
    acquire_lock(path)
    return path


def write_config(run: Path, config: Config, provenance: dict[str, Any]) -> None:
    """Write config.toml: the resolved configuration, versions, host and git state.

    A resumed run keeps the provenance of its earlier jobs under `earlier`. Raises UserError if an
    existing config.toml is damaged.
    """
    path = run / "config.toml"
    current = {**provenance, **describe_machine()}
    if path.exists():
        previous = read_provenance(run)
        current["earlier"] = [*previous.pop("earlier", []), previous]
    table = {**config_table(config), PROVENANCE: current}
    with explain_write_errors(path):
        write_complete(path, tomli_w.dumps(table).encode())


def write_devices(run: Path, manifest: Manifest) -> None:
    """Write devices.json: the classes of each device, so that reports do not need the shards."""
    about = {
        "image_shape": manifest.image_shape,
        "class_names": manifest.class_names,
        "images": manifest.images,
        "histograms": manifest.histograms,
    }
    with explain_write_errors(run / DEVICES):
        write_complete(run / DEVICES, (json.dumps(about) + "\n").encode())
