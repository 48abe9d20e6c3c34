"""`python -m fedgan_mpi`: the commands. The only place that ends a job early."""

from __future__ import annotations

import errno
import platform
import sys
import traceback
from typing import TYPE_CHECKING

from fedgan_mpi.training import signals
from fedgan_mpi.training.environment import importing  # before numpy and torch are loaded

if __name__ == "__main__":
    signals.listen()  # before what is slow to import: a job may be told to end while it begins

from fedgan_mpi.cli.commands import (
    Alone,
    Compare,
    Evaluate,
    Export,
    Jobs,
    Memorization,
    Sample,
    Together,
    Watch,
    parse,
    runs_alone,
)
from fedgan_mpi.cli.parser import Train, wants_help
from fedgan_mpi.comm.launcher import announced_rank
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import writing

if TYPE_CHECKING:
    from fedgan_mpi.comm.link import Link


def main(arguments: list[str]) -> int:
    if wants_help(arguments) and announced_rank() > 0:
        return 0  # once is enough
    if wants_help(arguments) or runs_alone(arguments):
        signals.ignore_no_more()
        return _alone(arguments)
    return _together(arguments)


def _alone(arguments: list[str]) -> int:
    """Commands of one process, which need no MPI."""
    try:
        _run_alone(parse(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # how one leaves `watch`
        return 130
    return 0


def _run_alone(command: Together | Alone) -> None:
    if isinstance(command, Sample):
        with importing():
            from fedgan_mpi.run.generator_file import load
            from fedgan_mpi.run.image_grids import write_samples

        with writing(command.out):
            write_samples(load(command.run), command)
        print(command.out)
    elif isinstance(command, Export):
        with importing():
            from fedgan_mpi.run.exporters import convert

        convert(command.run, command.kind, command.out)
    elif isinstance(command, Compare):
        from fedgan_mpi.report.page import print_table, write_comparison

        print_table(write_comparison(command.runs, command.out, command.target))
        print(command.out / "index.html")
    elif isinstance(command, Watch):
        from fedgan_mpi.report.watch import watch

        watch(command.run, seconds=command.seconds, once=command.once)
    elif isinstance(command, Jobs):
        from fedgan_mpi.cli.slurm_script import slurm_script

        print(slurm_script(command), end="")


def _together(arguments: list[str]) -> int:
    """Commands of a whole world of ranks."""
    from fedgan_mpi.comm.link import AgreedError, Link, RankLost

    link = Link()
    try:
        link.check_world()
        command = link.from_server(lambda: parse(arguments))
        if isinstance(command, Train):
            status = _train(link, command)
            if status or link.lost:
                link.leave(status)
            return 0
        signals.ignore_no_more()  # the others leave nothing half done
        if isinstance(command, Evaluate):
            with importing():
                from fedgan_mpi.evaluation.evaluate import evaluate

            evaluate(link, command)
        elif isinstance(command, Memorization):
            with importing():
                from fedgan_mpi.evaluation.memorization import measure_memorization

            measure_memorization(link, command)
    except AgreedError as error:  # every rank has it: say it once, leave together
        # Of many worlds of one rank, each has a server; the launcher numbers them all the same.
        if link.is_server and (link.size > 1 or announced_rank() == 0):
            print(error, file=sys.stderr, flush=True)
        link.barrier()
        if link.lost:
            link.leave(1)
        return 1
    except RankLost:
        print(f"[rank {link.rank}] a rank has died outside of the rounds", file=sys.stderr)
        link.abort()
    except SystemExit:
        raise
    except KeyboardInterrupt:  # of a command that leaves nothing half done
        link.abort(130)
    except BaseException as error:  # this rank alone: the others wait and cannot be told
        where = f"[rank {link.rank} on {platform.node()}]"
        print(f"{where} {_what_happened(error)}", file=sys.stderr, flush=True)
        link.abort()
    return 0


def _what_happened(error: BaseException) -> str:
    """A sentence where a disk is full or gone, which is no bug; otherwise the traceback."""
    if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
        which = error.filename or "a file of the run directory"
        return f"{which} cannot be written: {error.strerror}; the last checkpoint stays whole"
    return traceback.format_exc()


_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)


def _train(link: Link, command: Train) -> int:
    from fedgan_mpi.run.lock import release_lock
    from fedgan_mpi.training.setup import start

    if command.dry_run:
        with importing():
            from fedgan_mpi.cli.dry_run import dry_run

        dry_run(link, command.config)
        return 0
    try:
        with importing():  # torch, at one place or another
            state = start(link, command)
            from fedgan_mpi.training.loop import train

        return train(link, state)
    finally:
        release_lock()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
