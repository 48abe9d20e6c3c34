"""On a GPU: recorded steps, rounding, staging and images. `pytest -m gpu` where there is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle_wire import ROUNDINGS
from test_cuda_graphs import KINDS, after_some_rounds
from test_compression import every_magnitude, there_and_back
from toys import toy_shards

from fedgan_mpi.comm.compression import Wire
from fedgan_mpi.comm.gpu_staging import PIECE, Cuda, Staging
from fedgan_mpi.config import Config, ModelConfig
from fedgan_mpi.data import Batches
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.device_images import Images
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.nn.cuda_graphs import Cuda as CudaGraphs
from fedgan_mpi.nn.precision import use_tf32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

GPU = "cuda:0"


class Counting(CudaGraphs):
    """Counts what was recorded."""

    def __init__(self) -> None:
        super().__init__(strict=True)
        self.recordings = 0

    def record(self, step):
        self.recordings += 1
        return super().record(step)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_equal_eager_ones_and_those_of_the_cpu(kind):
    recorder = Counting()
    on_cpu = after_some_rounds(kind, None)
    eager = after_some_rounds(kind, None, GPU)
    recorded = after_some_rounds(kind, recorder, GPU)
    assert recorder.recordings >= 1
    for losses, (device, server) in (eager, recorded):
        assert losses == pytest.approx(on_cpu[0], rel=1e-9)
        for name in ("vector",):
            expected = on_cpu[1][1][name]
            torch.testing.assert_close(server[name].cpu(), expected, rtol=1e-9, atol=1e-11)
        assert device["moments"][0]["steps"] == on_cpu[1][0]["moments"][0]["steps"]


def networks_after(graphs, *, architecture="dcgan", loss="nonsaturating", **training):
    """The vector of 64-pixel networks after three rounds of two steps."""
    config = Config()
    norm = "none" if loss == "wgan-gp" and architecture == "dcgan" else None
    model = ModelConfig(architecture=architecture, width=16, discriminator_norm=norm)
    steps = {"batch_size": 16, "discriminator_steps": 3, "generator_steps": 3}
    training = replace(config.training, loss=loss, graphs=graphs, **steps, **training)
    config = replace(config, model=model, training=training)
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
def test_graphs_change_no_networks(options):
    """Kernels may add up in another order from run to run; a lost step would be far more."""
    recorded, eager = networks_after("on", **options), networks_after("off", **options)
    again = networks_after("off", **options)
    noise = (eager - again).abs().max().item()
    assert (recorded - eager).abs().max().item() <= max(10 * noise, 2e-5)


def test_graphs_follow_what_changes_between_steps():
    """A vector that is overwritten between steps, as by a downlink, is what the next step starts
    from."""
    from test_graphs import device_and_server

    device, _ = device_and_server(Counting(), torch_device=GPU)
    for t in range(4):
        device.train_discriminator(t)
    phi = device.pair.flat.phi
    phi.data.zero_()
    device.optimizer.reset()
    device.train_discriminator(5)
    assert phi.abs().max() < 1e-2  # some steps from zero, not from where it was


@pytest.mark.parametrize("dtype", list(ROUNDINGS))
def test_a_gpu_rounds_as_a_cpu_does(dtype):
    numbers = every_magnitude()
    arrived = there_and_back(Wire(dtype), numbers.to(GPU))
    assert np.array_equal(arrived.cpu().numpy(), ROUNDINGS[dtype](numbers.numpy()))
    wire, total = Wire(dtype), torch.ones(70_000, device=GPU)
    small = wire.pack(torch.full((70_000,), 2.0**-12, device=GPU), "test")
    for _ in range(2048):
        wire.add(small, total)
    assert torch.equal(total.cpu(), torch.full((70_000,), 1.5))


@pytest.mark.parametrize("direct", [False, True])
def test_staging_hands_out_what_a_busy_gpu_is_still_computing(direct):
    transport = Staging(Cuda(), direct=direct)
    count = 5 * PIECE // 4 + 77
    busy = torch.rand(4000, 4000, device=GPU)
    vector, landed = torch.zeros(count, device=GPU), torch.zeros(count, device=GPU)
    for turn in range(3):
        for _ in range(20):
            busy = (busy @ busy).clamp_(-1, 1)
        vector.copy_(torch.arange(count, device=GPU) + turn + 0 * busy[0, 0])
        expected = torch.arange(count, dtype=torch.float32) + turn
        pieces = [piece.cpu().clone() for piece in transport.outgoing(vector, "out")]
        assert torch.equal(torch.cat(pieces), expected)
        start = 0
        for buffer in transport.incoming(landed, "in"):
            buffer.copy_(expected[start : start + len(buffer)])
            start += len(buffer)
        assert torch.equal((landed + 0).cpu(), expected)
        assert torch.equal(transport.whole(vector, "whole", load=True).cpu(), expected)


def test_images_lie_in_the_gpus_memory():
    shard = toy_shards([20])[1]
    images = Images(shard, torch.zeros(0, device=GPU))
    assert images.resident is not None and images.resident.is_cuda
    indices = np.array([3, 1, 3, 19])
    expected = torch.from_numpy(shard.images[indices].astype(np.float32) * (2 / 255) - 1)
    torch.testing.assert_close(images.batch(indices).cpu(), expected, rtol=0, atol=1e-6)
    read = Images(shard, torch.zeros(0, device=GPU), resident=False)
    torch.testing.assert_close(read.batch(indices).cpu(), expected, rtol=0, atol=1e-6)
