"""`python -m data_prep DATASET --source DIR --out shards/`: cut a data set into shards.
`python -m data_prep inspect shards/`: who holds what."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

# Before anything loads a math library: its threads would fight the decoding processes for cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from data_prep.command_line import parse, partition
from data_prep.decode import Decode, cores, decode_here, decode_in_processes
from data_prep.download import download
from data_prep.prepare import prepare
from data_prep.sources import SOURCES
from fedgan_mpi.comm.launcher import announced_size
from fedgan_mpi.errors import UserError


def main(arguments: list[str]) -> int:
    if announced_size() > 1:
        return _with_ranks(arguments)
    return _run(arguments, None)


def _with_ranks(arguments: list[str]) -> int:
    """Rank 0 does everything; the others decode for it."""
    from data_prep.ranks import Ranks

    try:
        ranks = Ranks()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        if not ranks.is_first:
            ranks.help()
            return 0
        code = _run(arguments, ranks.decode)
        ranks.dismiss()
        return code
    except BaseException:  # this rank alone: the others wait and cannot be told
        traceback.print_exc()
        sys.stderr.flush()
        ranks.abort()
        raise


def _run(arguments: list[str], decode: Decode | None) -> int:
    try:
        command = parse(arguments)
        if command.command == "inspect":
            from data_prep.inspect import inspect

            return inspect(command.shards, command.picture)
        _prepare(command, decode)
    except SystemExit as error:  # the parser has said why
        return error.code if isinstance(error.code, int) else 1
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


def _prepare(command: argparse.Namespace, decode: Decode | None) -> None:
    cut = partition(command)
    devices = cut.devices(command.devices)
    kind = SOURCES[command.command]
    if command.download:
        download(kind, command.source)
    source = kind(command.source)
    for warning in source.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if decode is None:
        processes = command.processes or cores()
        decode = decode_in_processes(processes) if processes > 1 else decode_here
    manifest = prepare(
        source,
        command.out,
        devices=devices,
        seed=command.seed,
        partition=cut,
        heldout_share=command.heldout_share,
        size=command.size,
        channels=command.channels,
        skip_bad=command.skip_bad,
        features=command.features,
        force=command.force,
        origin=str(command.source and command.source.resolve()),
        decode=decode,
        show_progress=True,
    )
    images = f"{sum(manifest.images):,} images in {manifest.devices} shards"
    print(f"{command.out}: {images}, {manifest.heldout_images:,} held out")
    if manifest.skipped:
        print(f"{len(manifest.skipped)} unreadable images left out, listed in shards.json")
    if manifest.features_accuracy is not None:
        print(f"the scores' classifier names {manifest.features_accuracy:.1%} of held-out images")
    elif manifest.features is None:
        print("no features for scores: runs on these shards will not be scored")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
