"""`train --dry-run`: describes an experiment. Trains nothing and writes no file."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from fedgan_mpi.comm.link import Link
from fedgan_mpi.config import Config, choose_by_size
from fedgan_mpi.config.io import config_table
from fedgan_mpi.data import Manifest
from fedgan_mpi.federation.participation import check_count
from fedgan_mpi.run.output import print_line
from fedgan_mpi.training.digits import digits_shape, plan_digits
from fedgan_mpi.training.preflight import check_manifest, check_plugins
from fedgan_mpi.training.setup import check_networks


def dry_run(link: Link, config: Config) -> None:
    """Print the resolved configuration, parameter counts, bytes per round and shard sizes.

    Collective. Raises AgreedError if the configuration does not fit the shards.
    """
    text = link.from_server(lambda: _describe(link, config))
    if link.is_server:
        print_line(text)


def _describe(link: Link, config: Config) -> str:
    from fedgan_mpi.algorithms.aggregation.compressors import upload_bits
    from fedgan_mpi.algorithms.registry import algorithm_class
    from fedgan_mpi.nn.freezing import count_trained, freeze_layers
    from fedgan_mpi.nn.registry import build, count_parameters
    from fedgan_mpi.wireless.cost import payload_sizes

    check_plugins(config)
    dataset, images, image_shape, classes = _data_set(config)
    config = choose_by_size(config, image_shape)
    check_networks(config, image_shape, classes, len(images))
    G, D = build(config.model, image_shape, classes if config.model.conditional else 0)
    fixed = freeze_layers(D, config.training.freeze_discriminator)
    theta, phi = count_parameters(G), count_trained(D)
    sizes = payload_sizes(config, image_shape, theta, phi)
    algorithm = algorithm_class(config.algorithm.name)
    payload, memory = algorithm.payload(sizes), algorithm.memory(config, sizes, len(images))
    size = 8 if config.training.precision == "float64" else 4
    bytes_per_number = {"float32": 4, "float64": 8}.get(config.link.wire_dtype, 2)
    participants = config.participation.participants(len(images))
    if payload is None:
        traffic = [
            f"bytes per round         measured in training: {config.algorithm.name} has no formula"
        ]
    else:
        down = payload.down * bytes_per_number
        up = upload_bits(config.aggregation, payload.up, 8 * bytes_per_number) // 8
        traffic = [
            f"bytes down per round    {down * participants:,} ({down:,} per participant)",
            f"bytes up per round      {up * participants:,} ({up:,} per participant)",
        ]
        if config.aggregation.needs_rows:
            whole = payload.up * size
            rows = _rows_of_the_server(config, len(images), participants, up, whole)
            traffic.append(
                f"memory of the server    {rows:,} bytes for what devices send, on its GPU if it "
                "has one"
            )
    if memory is not None:
        traffic += [
            f"memory of the server    {memory.server * size:,} bytes for what devices send, on its "
            "GPU if it has one",
            f"shared memory           {memory.shared * size:,} bytes, if ranks of one machine "
            "outnumber its cores",
        ]
    channels, height, width = image_shape
    lines = [
        tomli_w.dumps(config_table(config)),
        f"data set                {dataset}, {channels}×{height}×{width}, {sum(images):,} images",
        f"images per device       {', '.join(f'{n:,}' for n in images)}",
        f"parameters of G         {theta:,}",
        f"parameters of D         {count_parameters(D):,}",
        *([f"fixed layers of D       {', '.join(fixed)}"] if fixed else []),
        f"participants per round  {participants} of {len(images)}",
        *traffic,
        f"ranks                   {_describe_ranks(link, len(images))}",
    ]
    return "\n".join(lines)


def _rows_of_the_server(
    config: Config, devices: int, participants: int, message: int, vector: int
) -> int:
    """Return the bytes of all rows, and of the vectors of which a rule gets a copy.

    message: bytes of a compressed message. vector: bytes of what it stands for, in the type of
    parameters, whatever the wire's.
    """
    is_compressed = config.aggregation.compression != "none"
    row = message if is_compressed else vector
    is_copied = is_compressed or participants < devices
    copies = participants if config.aggregation.rule != "mean" and is_copied else 0
    return devices * row + copies * vector


def _data_set(config: Config) -> tuple[str, list[int], tuple[int, int, int], int]:
    """Return the data set's name, images per device, (C, H, W) and number of classes."""
    if config.data.shards is not None:
        manifest = Manifest.read(Path(config.data.shards))
        check_manifest(config, Path(config.data.shards), manifest)
        images, dataset, image_shape = manifest.images, manifest.dataset, manifest.image_shape
        classes = len(manifest.histograms[0])
    else:
        histograms, _ = plan_digits(config)
        images, dataset = [sum(counts) for counts in histograms], "digits"
        image_shape, classes = digits_shape(config), 10
    check_count(config.participation, len(images))
    return dataset, images, image_shape, classes


def _describe_ranks(link: Link, devices: int) -> str:
    if link.size == 1:
        return f"1, the server and all devices; `mpirun -n {devices + 1}` gives each a rank"
    hosted = -(-devices // link.device_ranks)
    return f"1 server and {link.device_ranks} device ranks, each with up to {hosted} devices"
