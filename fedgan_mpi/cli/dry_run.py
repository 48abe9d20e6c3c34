"""`--dry-run`: what an experiment would be, without training it or writing anything."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from fedgan_mpi.cli.parser import config_table
from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest
from fedgan_mpi.federation.participation import check_count
from fedgan_mpi.training.digits import plan_digits
from fedgan_mpi.training.preflight import check_manifest


def dry_run(link: Link, config: Config) -> None:
    """Collective. Print the resolved configuration, parameter counts, bytes a round and shard
    sizes."""
    text = link.from_server(lambda: _describe(link, config))
    if link.is_server:
        print(text)


def _describe(link: Link, config: Config) -> str:
    from fedgan_mpi.algorithms import ALGORITHMS
    from fedgan_mpi.nn.registry import build, count_parameters
    from fedgan_mpi.wireless.cost import payload_sizes

    name, images, shape, classes = _data(config)
    G, D = build(config.model, shape, classes if config.model.conditional else 0)
    theta, phi = count_parameters(G), count_parameters(D)
    sizes = payload_sizes(config, shape, theta, phi)
    payload = ALGORITHMS[config.algorithm.name].payload(sizes)
    width = {"float32": 4, "float64": 8}.get(config.link.wire_dtype, 2)
    participants = config.participation.participants(len(images))
    down, up = payload.down * width, payload.up * width
    lines = [
        tomli_w.dumps(config_table(config)),
        f"data set              {name}, {shape[0]}×{shape[1]}×{shape[2]}, {sum(images):,} images",
        f"images a device       {', '.join(f'{n:,}' for n in images)}",
        f"parameters of G       {theta:,}",
        f"parameters of D       {phi:,}",
        f"participants a round  {participants} of {len(images)}",
        f"bytes down a round    {down * participants:,} ({down:,} per participant)",
        f"bytes up a round      {up * participants:,} ({up:,} per participant)",
        f"ranks                 {_hosting(link, len(images))}",
    ]
    return "\n".join(lines)


def _data(config: Config) -> tuple[str, list[int], tuple[int, int, int], int]:
    """Name, images a device, image shape and classes; the embedded digits are cut on paper
    only."""
    if config.data.shards is not None:
        manifest = Manifest.read(Path(config.data.shards))
        check_manifest(config, Path(config.data.shards), manifest)
        images, name, shape = manifest.images, manifest.dataset, manifest.image_shape
        classes = len(manifest.histograms[0])
    else:
        size, histograms, _ = plan_digits(config)
        images, name, shape = [sum(counts) for counts in histograms], "digits", (1, size, size)
        classes = 10
    check_count(config.participation, len(images))
    return name, images, shape, classes


def _hosting(link: Link, devices: int) -> str:
    """How the devices are spread over the ranks, for a reader."""
    if link.size == 1:
        return f"1 here; training takes 2 to {devices + 1}"
    hosted = -(-devices // link.device_ranks)
    return f"1 server and {link.device_ranks} device ranks, with up to {hosted} devices each"
