"""Training from Python, and the command `train`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgan_mpi import log
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import check_resumable, config_table, read_config
from fedgan_mpi.config.parsing import make_config, parse_tables
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import explain_write_errors
from fedgan_mpi.run.lock import release_lock
from fedgan_mpi.run.result import Result
from fedgan_mpi.training.environment import importing
from fedgan_mpi.training.setup import prepare_run

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger(__name__)


def train(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    shards: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    comm: MPI.Comm | None = None,
    resume: str | Path | None = None,
) -> Result:
    """Implement `fedgan_mpi.train`, which documents the arguments."""
    from mpi4py import MPI

    link = Link((MPI.COMM_WORLD if comm is None else comm).Dup())
    if comm is None:
        link.check_world()

    def read() -> Config:
        experiment = to_config(config)
        if shards is not None:
            experiment = replace(experiment, data=replace(experiment.data, shards=str(shards)))
        if resume is not None:
            before = Path(resume) / "config.toml"
            check_resumable(config_table(read_config(before)), config_table(experiment), before)
        return experiment

    run = None if resume is None else Path(resume)
    try:
        result = run_training(link, link.from_server(read), callbacks, resume=run)
    except (UserError, SystemExit):  # the same on every rank
        raise
    except BaseException:
        if link.size > 1:  # the other ranks wait for this one
            logger.exception("the training failed on this rank, and the job ends")
            link.abort()
        raise
    link.close()
    return result


def run_training(
    link: Link,
    config: Config,
    callbacks: Sequence[Callback] = (),
    *,
    resume: Path | None = None,
    replace: bool = False,
) -> Result:
    """Train with a checked configuration. Collective.

    replace: a run directory of this name without checkpoints may be put aside.
    """
    try:
        link.on_every_rank(lambda: _start_log(link, config))
        # The checks or the loop import torch. In a second run, `importing` would only freeze the
        # garbage of the first.
        with nullcontext() if "torch" in sys.modules else importing():
            context = prepare_run(link, config, resume=resume, replace=replace)
            from fedgan_mpi.training.loop import train_run

        return train_run(link, context, callbacks)
    finally:
        release_lock()


def _start_log(link: Link, config: Config) -> None:
    directory = config.log.per_rank
    with explain_write_errors(Path(directory or ".")):
        log.start(link.rank, config.log.level, directory)


def to_config(config: str | Path | Mapping[str, Any] | Config) -> Config:
    """Return a checked configuration. Raises UserError naming the key, and the file if any."""
    if isinstance(config, Config):
        return config
    if isinstance(config, str | Path):
        return read_config(Path(config))
    tables = {name: dict(table) for name, table in _tables(config).items()}
    return make_config(parse_tables(tables))


def _tables(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    for name, table in config.items():
        if not isinstance(table, Mapping):
            raise UserError(
                f"{name} is {table!r}, but must be a table such as {{'training': {{'rounds': 60}}}}"
            )
    return config
