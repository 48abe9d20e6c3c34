"""What happens before the first round: everything a user may have got wrong is found here, and
agreed on.

Cheap checks come first, and torch, whose import takes nine ranks on two cores many seconds, comes
last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedgan_mpi.cli.parser import Train
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest, Shard, union
from fedgan_mpi.data.loading import (
    check_extractor,
    hosted_devices,
    keeps_in_memory,
    read_heldout,
    read_shards,
)
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import refuse_links
from fedgan_mpi.run.directory import make_run_directory, put_aside, write_config, write_devices
from fedgan_mpi.run.lock import acquire_lock
from fedgan_mpi.training.digits import check_digits, write_digits
from fedgan_mpi.training.preflight import (
    check_inception,
    check_machine,
    check_manifest,
    check_same_shards,
    check_world,
)


@dataclass(kw_only=True)
class RunContext:
    """What the checks leave behind for training: a place to write, and this rank's data."""

    config: Config
    run: Path
    resume: bool
    directory: Path
    """Of the shards."""
    manifest: Manifest
    shards: dict[int, Shard]
    """Of the devices that this rank hosts; the union of all, as device 1, for `centralized`."""
    heldout: Shard | None
    """On the server."""


def start(link: Link, command: Train) -> RunContext:
    """Collective. Raises AgreedError where anything is wrong, before torch is imported."""
    config = command.config
    link.configure(config.link)
    link.on_every_rank(lambda: check_machine(config))
    link.from_server(lambda: check_inception(config))
    if config.data.shards is None:
        run, directory, manifest = _start_with_digits(link, command)
    else:
        directory = Path(config.data.shards)
        manifest = link.from_server(lambda: _read_manifest(config, link, directory))
        run = Path()
    shards, heldout = link.on_every_rank(lambda: _read_data(link, config, directory, manifest))
    if config.data.shards is not None:
        run = link.from_server(lambda: _open_run(command, manifest.dataset))
    if command.resume is not None:
        link.from_server(lambda: check_same_shards(run, manifest))
    state = RunContext(
        config=config,
        run=run,
        resume=command.resume is not None,
        directory=directory,
        manifest=manifest,
        shards=shards,
        heldout=heldout,
    )
    if not state.resume:  # of one that may be refused, nothing changes yet
        link.from_server(lambda: describe_run(state, link))
    return state


def _start_with_digits(link: Link, command: Train) -> tuple[Path, Path, Manifest]:
    """The embedded digits become shards in the run directory, written by the server."""
    config = command.config

    def check() -> Path:
        check_world(config, link, config.data.devices)
        check_digits(config)
        return _open_run(command, "digits")

    run = link.from_server(check)
    directory = run / "shards"
    if command.resume is None:
        if not link.is_server:
            import torch  # noqa: F401 - the server is about to import it and to work; wait usefully
        manifest = link.from_server(lambda: write_digits(config, directory))
    else:
        manifest = link.from_server(lambda: Manifest.read(directory))
    return run, directory, manifest


def _read_manifest(config: Config, link: Link, directory: Path) -> Manifest:
    manifest = Manifest.read(directory)
    check_world(config, link, manifest.devices)
    check_manifest(config, directory, manifest)
    return manifest


def _open_run(command: Train, dataset: str) -> Path:
    if command.resume is not None:
        if not (command.resume / "checkpoints").is_dir():
            raise UserError(f"{command.resume} is not a run directory; --resume needs one")
        refuse_links(command.resume)
        acquire_lock(command.resume)
        return command.resume
    if command.again:
        put_aside(command.config)
    return make_run_directory(command.config, dataset)


def describe_run(start: RunContext, link: Link) -> None:
    """Write config.toml and devices.json; the server's."""
    where = {"ranks": link.size, "mpi": link.library(), "shards_sha256": start.manifest.sha256}
    write_config(start.run, start.config, where)
    write_devices(start.run, start.manifest)


def _read_data(
    link: Link, config: Config, directory: Path, manifest: Manifest
) -> tuple[dict[int, Shard], Shard | None]:
    """This rank's shards and, on the server, the held-out images."""
    if not config.algorithm.traits.has_devices:
        mine = list(range(1, manifest.devices + 1)) if link.is_server else []
        shards = read_shards(directory, manifest, mine, in_memory=True)
        shards = {1: union(list(shards.values()), directory)} if shards else {}
    else:
        mine = hosted_devices(manifest.devices, link)
        in_memory = keeps_in_memory(config, link, manifest, mine)
        shards = read_shards(directory, manifest, mine, in_memory=in_memory)
    if not link.is_server:
        return shards, None
    heldout = read_heldout(config, directory, manifest)
    check_extractor(directory, manifest)
    return shards, heldout
