"""`python -m fedgan_mpi`: runs a command. Only this module ends a job early."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from fedgan_mpi.training import signals
from fedgan_mpi.training.environment import importing  # before numpy and torch

if __name__ == "__main__":
    signals.install()  # before slow imports: a job may be asked to stop while it starts

from fedgan_mpi import log, plugins
from fedgan_mpi.cli.commands import Evaluate, Memorization, MpiCommand, Score, is_local, parse
from fedgan_mpi.cli.completion import is_completing
from fedgan_mpi.cli.local_commands import (
    Compare,
    Export,
    Jobs,
    LocalCommand,
    Plugins,
    Sample,
    Watch,
)
from fedgan_mpi.cli.parser import Train, wants_help
from fedgan_mpi.comm.launcher import announced_rank
from fedgan_mpi.config.io import umask_of
from fedgan_mpi.errors import AgreedError, UserError, sentence_of
from fedgan_mpi.files import explain_write_errors, is_standard_output, umask

if TYPE_CHECKING:
    from fedgan_mpi.comm.link import Link

logger = logging.getLogger("fedgan_mpi")


def main(arguments: list[str]) -> int:
    """Run a command; return the exit status."""
    log.prepare_streams()
    # Pictures are files. The variable may name the backend of a notebook, which fails elsewhere.
    os.environ["MPLBACKEND"] = "agg"
    if wants_help(arguments) and announced_rank() > 0:
        return 0  # one rank prints it
    log.start(announced_rank())
    if wants_help(arguments) or is_local(arguments) or is_completing():
        signals.restore_defaults()
        return _run_without_mpi(arguments)
    return _run_with_mpi(arguments)


def _run_without_mpi(arguments: list[str]) -> int:
    from fedgan_mpi.run.output import reader_may_leave

    try:
        with reader_may_leave():
            _run_local(parse(arguments))
    except (UserError, OSError) as error:
        print(sentence_of(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the normal end of `watch`
        return signals.INTERRUPTED
    return 0


def _run_local(command: MpiCommand | LocalCommand) -> None:
    if isinstance(command, Sample):
        with importing():
            from fedgan_mpi.run.generator_file import load
            from fedgan_mpi.run.image_grids import write_samples

        generator = load(command.run, command.networks, standing_batches=command.standing_batches)
        generator.truncation = command.truncation
        with umask(umask_of(command.run)), explain_write_errors(command.out):
            write_samples(
                generator,
                command.out,
                style=command.style,
                count=command.count,
                seed=command.seed,
                label=command.label,
            )
        if not is_standard_output(command.out):
            print(command.out)
    elif isinstance(command, Export):
        with importing():
            from fedgan_mpi.run.exporters import convert

        with umask(umask_of(command.run)):
            convert(
                command.run,
                command.kind,
                command.out,
                command.networks,
                standing_batches=command.standing_batches,
            )
    elif isinstance(command, Compare):
        from fedgan_mpi.report.comparison import print_table, write_comparison

        print_table(write_comparison(command.runs, command.out, command.target))
        print(command.out / "index.html")
    elif isinstance(command, Watch):
        from fedgan_mpi.report.watch import watch

        watch(command.run, seconds=command.seconds, once=command.once)
    elif isinstance(command, Plugins):
        from fedgan_mpi.cli.plugin_list import print_plugins

        print_plugins()
    elif isinstance(command, Jobs):
        from fedgan_mpi.cli.job_script import job_script

        print(job_script(command), end="")


def _run_with_mpi(arguments: list[str]) -> int:
    from fedgan_mpi.comm.link import Link, RankLost

    signals.reapply()
    link = Link()
    try:
        link.check_world()
        command = link.from_server(lambda: parse(arguments))
        if isinstance(command, Train):
            status = _train(link, command)
            if status or link.lost:
                link.leave(status)
            return 0
        signals.restore_defaults()
        if isinstance(command, Score):
            _score(link, command)
        elif isinstance(command, Evaluate | Memorization):
            with umask(link.from_server(partial(umask_of, command.run))):
                _run_on_every_rank(link, command)
    except AgreedError as error:  # on every rank: the server prints it
        # If the launcher started many worlds of one rank, its own numbering distinguishes them.
        if link.is_server and (link.size > 1 or announced_rank() == 0):
            print(error, file=sys.stderr, flush=True)
        link.barrier()
        link.detector.stop()
        if link.lost:
            link.leave(1)
        return 1
    except RankLost:
        logger.error("a rank has died outside of the rounds")
        link.abort()
    except SystemExit:
        raise
    except KeyboardInterrupt:
        link.abort(signals.INTERRUPTED)
    except BaseException as error:  # a bug on this rank: the other ranks wait for it
        logger.error("%s", _describe(error))
        link.abort()
    return 0


def _score(link: Link, command: Score) -> None:
    with importing():
        from fedgan_mpi.score.command import score

    score(link, **vars(command))


def _run_on_every_rank(link: Link, command: Evaluate | Memorization) -> None:
    if isinstance(command, Evaluate):
        with importing():
            from fedgan_mpi.evaluation.evaluate import evaluate

        evaluate(
            link,
            command.run,
            shards=command.shards,
            samples=command.samples,
            metrics=command.metrics,
            imagenet_size=command.imagenet_size,
            inception_weights=command.inception_weights,
            networks=command.networks,
            extractor=command.extractor,
        )
    else:
        with importing():
            from fedgan_mpi.evaluation.memorization import measure_memorization

        measure_memorization(
            link,
            command.run,
            shards=command.shards,
            count=command.count,
            show_images=command.show_images,
            show_devices=command.show_devices,
            networks=command.networks,
            extractor=command.extractor,
        )


def _train(link: Link, command: Train) -> int:
    from fedgan_mpi.training.api import run_training

    config = command.config
    if command.dry_run:
        with importing():
            from fedgan_mpi.cli.dry_run import dry_run

        dry_run(link, config)
        return 0
    result = run_training(link, config, resume=command.resume, replace=command.again)
    return result.exit_status


def _describe(error: BaseException) -> str:
    """A sentence if the user can help, as with a disk that is full; otherwise the traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        file = error.filename or "a file of the run directory"
        return f"{file} cannot be written: {error.strerror}; the last checkpoint is complete"
    return "\n".join(filter(None, (traceback.format_exc(), plugins.blame(error))))


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


def console() -> NoReturn:
    """The command `fedgan-mpi`."""
    signals.install()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
