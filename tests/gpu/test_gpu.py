"""CUDA graphs, rounding, staging and images on a GPU, on one rank.

Run them with `pytest -m gpu`; they are skipped on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from graph_cases import STEP_KINDS, device_and_server, train_five_rounds
from rounding import ROUNDINGS, all_magnitudes, round_trip
from toys import toy_shards

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu.staging import CHUNK_BYTES, Cuda, Staging
from fedgan_mpi.config import Config, ModelConfig, choose_by_size
from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.device_images import Images
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.hardware.tf32 import use_tf32
from fedgan_mpi.nn.cuda_graphs import CudaGraphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

GPU = "cuda:0"


class CountingGraphs(CudaGraphs):
    """Counts captures."""

    def __init__(self) -> None:
        super().__init__(strict=True)
        self.captures = 0

    def capture(self, step):
        self.captures += 1
        return super().capture(step)


# ------------------------------------------------------------ CUDA graphs


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_captured_and_eager_rounds_equal_those_of_the_cpu(kind):
    recorder = CountingGraphs()
    expected_losses, expected_device, expected_server = train_five_rounds(kind, None)
    eager = train_five_rounds(kind, None, GPU)
    captured = train_five_rounds(kind, recorder, GPU)
    assert recorder.captures >= 1
    for losses, device, server in (eager, captured):
        assert losses == pytest.approx(expected_losses, rel=1e-9)
        torch.testing.assert_close(
            server["vector"].cpu(), expected_server["vector"], rtol=1e-9, atol=1e-11
        )
        assert device["moments"][0]["steps"] == expected_device["moments"][0]["steps"]


def train_64_pixels(graphs, *, architecture="dcgan", loss="nonsaturating", **training):
    """Return the vector of networks for 64 pixels after three rounds of three steps."""
    config = Config()
    norm = "none" if loss == "wgan-gp" and architecture == "dcgan" else None
    model = ModelConfig(architecture=architecture, width=16, discriminator_norm=norm)
    steps = {"batch_size": 16, "discriminator_steps": 3, "generator_steps": 3}
    training = replace(config.training, loss=loss, graphs=graphs, **steps, **training)
    config = replace(config, model=model, training=training)
    config = choose_by_size(config, (3, 64, 64))
    use_tf32(False)
    pair = build_networks(config, (3, 64, 64), GPU)
    stream = np.random.default_rng(0)
    shard = toy_shards([40])[1]
    shard.images = stream.integers(0, 256, (40, 3, 64, 64), dtype=np.uint8)
    device = Device(1, Batches(shard, batch_size=16, seed=0, device=1), pair, config)
    server = Server(pair, config)
    for t in range(3):
        device.train_discriminator(t)
        server.train_generator()
    return pair.flat.vector.clone()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"architecture": "sngan"},
        {"loss": "wgan-gp"},
        {"memory_format": "channels_last"},
        {"autocast": "bfloat16", "memory_format": "channels_last"},
    ],
    ids=["dcgan", "sngan", "penalty", "channels_last", "bfloat16"],
)
def test_graphs_change_parameters_by_rounding_only(options):
    """Two eager runs differ by the order of sums in kernels. A missing step would differ more."""
    captured, eager = train_64_pixels("on", **options), train_64_pixels("off", **options)
    second_eager = train_64_pixels("off", **options)
    rounding = (eager - second_eager).abs().max().item()
    assert (captured - eager).abs().max().item() <= max(10 * rounding, 2e-5)


def test_a_replay_starts_from_the_vectors_current_values():
    """A downlink overwrites the vector between steps. Here all parameters become zero."""
    device, _ = device_and_server(
        CountingGraphs(), algorithm={"moments": "reset"}, torch_device=GPU
    )
    for t in range(4):
        device.train_discriminator(t)
    phi = device.pair.flat.phi
    phi.data.zero_()
    device.train_discriminator(5)
    assert phi.abs().max() < 1e-2  # two steps away from zero


# ------------------------------------------------------------ rounding, staging, images


@pytest.mark.parametrize("dtype", list(ROUNDINGS))
def test_a_gpu_rounds_like_a_cpu(dtype):
    numbers = all_magnitudes()
    received = round_trip(Wire(dtype), numbers.to(GPU))
    assert np.array_equal(received.cpu().numpy(), ROUNDINGS[dtype](numbers.numpy()))
    wire, total = Wire(dtype), torch.ones(70_000, device=GPU)
    small = wire.pack(torch.full((70_000,), 2.0**-12, device=GPU), "test")
    for _ in range(2048):
        wire.add(small, total)
    assert torch.equal(total.cpu(), torch.full((70_000,), 1.5))


@pytest.mark.parametrize("direct", [False, True])
def test_staging_waits_for_a_busy_gpu(direct):
    staging = Staging(Cuda(), direct=direct)
    count = 5 * CHUNK_BYTES // 4 + 77
    busy = torch.rand(4000, 4000, device=GPU)
    vector, received = torch.zeros(count, device=GPU), torch.zeros(count, device=GPU)
    for turn in range(3):
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        vector.copy_(torch.arange(count, device=GPU) + turn + 0 * busy[0, 0])
        expected = torch.arange(count, dtype=torch.float32) + turn
        chunks = [chunk.cpu().clone() for chunk in staging.outgoing(vector, "out")]
        assert torch.equal(torch.cat(chunks), expected)
        start = 0
        for buffer in staging.incoming(received, "in"):
            buffer.copy_(expected[start : start + len(buffer)])
            start += len(buffer)
        assert torch.equal((received + 0).cpu(), expected)
        assert torch.equal(staging.mpi_buffer(vector, "whole", load=True).cpu(), expected)


def test_images_are_resident_in_the_gpus_memory():
    shard = toy_shards([20])[1]
    images = Images(shard, torch.zeros(0, device=GPU), resident=True)
    assert images.resident is not None and images.resident.is_cuda
    indices = np.array([3, 1, 3, 19])
    expected = torch.from_numpy(shard.images[indices].astype(np.float32) * (2 / 255) - 1)
    torch.testing.assert_close(images.batch(indices).cpu(), expected, rtol=0, atol=1e-6)
    read = Images(shard, torch.zeros(0, device=GPU), resident=False)
    torch.testing.assert_close(read.batch(indices).cpu(), expected, rtol=0, atol=1e-6)
