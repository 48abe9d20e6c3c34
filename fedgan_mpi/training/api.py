"""Training from Python, and the command `train`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedgan_mpi import log, plugins
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import read_values, resumed_config
from fedgan_mpi.config.parsing import flatten, make_config, parse_tables
from fedgan_mpi.errors import AgreedError, UserError
from fedgan_mpi.files import explain_write_errors, umask
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
    networks: str | Callable[..., Any] | None = None,
    algorithm: str | type[Any] | None = None,
) -> Result:
    """Implement `fedgan_mpi.train`, which documents the arguments."""
    from mpi4py import MPI

    link = Link((MPI.COMM_WORLD if comm is None else comm).Dup())
    if comm is None:
        link.check_world()

    named = _named(networks, algorithm)  # on every rank, which has the same objects

    def read() -> Config:
        experiment = to_config(config, named)
        if shards is not None:
            experiment = replace(experiment, data=replace(experiment.data, shards=str(shards)))
        if resume is not None:
            experiment = resumed_config(Path(resume), experiment)
        return experiment

    run = None if resume is None else Path(resume)
    try:
        result = run_training(link, link.from_server(read), callbacks, resume=run)
    except (AgreedError, SystemExit):  # the same on every rank
        link.detector.stop()
        raise
    except BaseException as error:
        sentence = plugins.blame(error)
        if link.size > 1:  # the other ranks wait for this one
            known = isinstance(error, UserError)
            reason = str(error) if known else "the training failed on this rank, and the job ends"
            logger.error(reason, exc_info=not known)
            if sentence is not None:
                logger.error("%s", sentence)
            link.abort()
        if sentence is not None and sys.version_info >= (3, 11):
            error.add_note(sentence)
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
        with umask(config.run.umask):
            link.on_every_rank(lambda: _start_log(link, config))
            # The checks or the loop import torch. In a second run, `importing` would only freeze
            # the garbage of the first.
            with nullcontext() if "torch" in sys.modules else importing():
                context = prepare_run(link, config, resume=resume, replace=replace)
                from fedgan_mpi.trackers import open_trackers
                from fedgan_mpi.training.loop import train_run

            with open_trackers(config if link.is_server else None) as trackers:
                return train_run(link, context, [*callbacks, *trackers])
    finally:
        release_lock()


def _start_log(link: Link, config: Config) -> None:
    directory = config.log.per_rank
    with explain_write_errors(Path(directory or ".")):
        log.start(link.rank, config.log.level, directory)


def to_config(
    config: str | Path | Mapping[str, Any] | Config, named: Mapping[str, str] = MappingProxyType({})
) -> Config:
    """Return a checked configuration. Raises UserError naming the key, and the file if any.

    named: key -> name or import string, in place of the configuration's value.
    """
    if isinstance(config, Config):
        values = flatten(asdict(config))
    elif isinstance(config, str | Path):
        values = read_values(Path(config))
    else:
        values = parse_tables({name: dict(table) for name, table in _tables(config).items()})
    values = {**values, **named}
    plugins.allow(plugins.named_in(values))  # the caller's own configuration
    return make_config(values)


def _named(
    networks: str | Callable[..., Any] | None, algorithm: str | type[Any] | None
) -> dict[str, str]:
    """Return key -> import string. Objects are registered on every rank."""
    named = {"model.architecture": networks, "algorithm.name": algorithm}
    return {
        key: code if isinstance(code, str) else plugins.register(key, code)
        for key, code in named.items()
        if code is not None
    }


def _tables(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    for name, table in config.items():
        if not isinstance(table, Mapping):
            raise UserError(
                f"{name} is {table!r}, but must be a table such as {{'training': {{'rounds': 60}}}}"
            )
    return config
