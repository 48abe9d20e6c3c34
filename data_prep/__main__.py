"""The command line of data_prep.

python -m data_prep DATASET --source DIR --out shards/    # write shards
python -m data_prep inspect shards/                       # list and verify shards
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import NoReturn

# Pictures are files. The variable may name the backend of a notebook, which fails elsewhere.
os.environ["MPLBACKEND"] = "agg"

# Set before numpy loads its math library, whose threads would compete with decoding processes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from data_prep.command_line import parse, partition_flags
from data_prep.decode import Decode, available_cores, decode_in_processes, decode_serially
from data_prep.download import download
from data_prep.limits import Limits
from data_prep.plugins import load, make_partition, make_source, name_in_errors
from data_prep.prepare import prepare
from fedgan_mpi import log
from fedgan_mpi.comm.launcher import announced_size
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError, sentence_of
from fedgan_mpi.files import umask
from fedgan_mpi.plugins.built_in import SOURCE_KEY
from fedgan_mpi.run.output import output_to, reader_may_leave


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status. Under mpirun, all ranks decode."""
    log.prepare_streams()
    if announced_size() > 1:
        return _run_on_ranks(arguments)
    return _run(arguments, None)


def _run_on_ranks(arguments: list[str]) -> int:
    """Run the command on rank 0 and decode on all ranks."""
    from data_prep.ranks import RankPool

    try:
        pool = RankPool()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        if not pool.is_first:
            pool.work()
            return 0
        status = _run(arguments, pool.decode)
        pool.close()
        return status
    except UserError as error:  # on this rank only; the others wait in a collective call
        print(error, file=sys.stderr, flush=True)
        pool.abort()
        raise
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        pool.abort()
        raise


def _run(arguments: list[str], decode: Decode | None) -> int:
    try:
        with reader_may_leave():
            command = parse(arguments)
        if command.command == "inspect":
            from data_prep.inspect import inspect

            with umask(command.umask), reader_may_leave():
                return inspect(command.shards, command.picture)
        manifest = _prepare(command, decode)
        with output_to(sys.stdout):
            _report(command, manifest)
            sys.stdout.flush()
    except SystemExit as error:  # the parser has printed the reason
        return error.code if isinstance(error.code, int) else 1
    except (UserError, OSError) as error:
        print(sentence_of(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; repeat the command to resume", file=sys.stderr)
        return 130
    return 0


def _prepare(command: argparse.Namespace, decode: Decode | None) -> Manifest:
    dataset = command.command
    partition = make_partition(
        command.partition, partition_flags(command), command.partition_option
    )
    if command.download:
        download(load(SOURCE_KEY, dataset), command.source)
    source = make_source(dataset, command.source, command.source_option)

    def warn(sentence: str) -> None:
        print(f"warning: {sentence}", file=sys.stderr)

    for warning in source.warnings:
        warn(warning)
    if decode is None:
        processes = command.processes or available_cores()
        decode = decode_serially if command.processes == 1 else decode_in_processes(processes)
    with (
        umask(command.umask),
        name_in_errors(),
    ):  # the user's own code may raise anywhere from here on
        return prepare(
            source,
            command.out,
            devices=partition.devices(command.devices),
            seed=command.seed,
            partition=partition,
            heldout_share=command.heldout_share,
            size=command.size,
            fit=command.fit,
            channels=command.channels,
            skip_bad=command.skip_bad,
            features=command.features,
            force=command.force,
            value_range=command.range,
            background=command.background,
            depth=command.depth,
            limits=Limits(seconds=command.decode_seconds, memory=command.decode_memory),
            origin=str(command.source and command.source.resolve()),
            decode=decode,
            plugin=dataset,
            warn=warn,
            show_progress=True,
        )


def _report(command: argparse.Namespace, manifest: Manifest) -> None:
    images = f"{sum(manifest.images):,} images in {manifest.devices} shards"
    print(f"{command.out}: {images}, {manifest.heldout_images:,} held out")
    if manifest.skipped:
        print(f"skipped {len(manifest.skipped)} unreadable images, listed in shards.json")
    if manifest.features_accuracy is not None:
        accuracy = f"{manifest.features_accuracy:.1%}"
        print(f"feature classifier for scores: accuracy {accuracy} on held-out images")
    elif manifest.features is None:
        print("no feature extractor: runs on these shards have no scores")


def console() -> NoReturn:
    """The command `fedgan-mpi-data`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
