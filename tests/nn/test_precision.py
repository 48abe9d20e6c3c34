"""bfloat16 inside, channels last, images on a GPU: what changes, and what must not."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_compression import allocated
from torch import nn
from toys import toy_shards

from fedgan_mpi.config import Config, ModelConfig
from fedgan_mpi.data import Batches
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.device_images import Images
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.hardware.cpu import multiplies_bfloat16
from fedgan_mpi.nn.optimizers import make_optimizer
from fedgan_mpi.nn.precision import Compute
from fedgan_mpi.nn.registry import build, initialize


def pair_of(architecture="dcgan", size=32, **training):
    config = Config()
    config = replace(
        config,
        model=ModelConfig(architecture=architecture, width=8, nz=10),
        training=replace(config.training, batch_size=8, generator_batch_size=8, **training),
    )
    return build_networks(config, (3, size, size)), config


def device_and_server(**options):
    pair, config = pair_of(**options)
    stream = np.random.default_rng(0)
    shard = toy_shards([24])[1]
    shard.images = stream.integers(0, 256, (24, *pair.image_shape), dtype=np.uint8)
    batches = Batches(shard, batch_size=8, seed=0, device=1)
    return Device(1, batches, pair, config), Server(pair, config)


def kernels(network):
    return [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]


# ------------------------------------------------------------ channels last


@pytest.mark.parametrize("architecture", ["dcgan", "sngan"])
def test_kernels_lie_channels_last_in_the_vector_and_are_its_views(architecture):
    plain, _ = pair_of(architecture)
    pair, _ = pair_of(architecture, memory_format="channels_last")
    for ours, theirs in ((pair.G, plain.G), (pair.D, plain.D)):
        for (name, value), expected in zip(
            ours.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(value, expected), name  # only the order in memory is another
        assert kernels(ours) and len(kernels(ours)) == len(kernels(theirs))
        for p in kernels(ours):
            assert p.is_contiguous(memory_format=torch.channels_last)
            assert p.grad.stride() == p.stride()
    assert not torch.equal(pair.flat.vector, plain.flat.vector)
    assert torch.equal(pair.flat.vector.sort().values, plain.flat.vector.sort().values)
    pair.flat.vector.fill_(0.25)
    assert all((p == 0.25).all() for p in (*pair.G.parameters(), *pair.D.parameters()))


@pytest.mark.parametrize("architecture", ["dcgan", "sngan"])
def test_channels_last_gives_the_same_steps(architecture):
    """Up to rounding: kernels of another order add up in another order."""
    found = []
    for memory_format in ("contiguous", "channels_last"):
        device, server = device_and_server(
            architecture=architecture, memory_format=memory_format, precision="float32"
        )
        losses = []
        for t in range(3):
            losses += [device.train_discriminator(t), server.train_generator()]
        found.append((losses, {**server.pair.D.state_dict(), **server.pair.G.state_dict()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=0.02, atol=2e-3)


def test_feature_maps_follow_the_kernels():
    pair, _ = pair_of(memory_format="channels_last")
    images = pair.G(torch.randn(4, 10))
    assert images.is_contiguous(memory_format=torch.channels_last)
    features = pair.D.features[0](images)
    assert features.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------ bfloat16 inside


class Nosy(nn.Module):
    """Notes what type a network's layers give."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.types = set()
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_hook(lambda m, i, output: self.types.add(output.dtype))


@pytest.mark.parametrize("architecture", ["dcgan", "sngan"])
def test_only_the_inside_is_bfloat16_and_only_in_training(architecture):
    device, server = device_and_server(architecture=architecture, autocast="bfloat16")
    pair = device.pair
    inside = [Nosy(network) for network in (pair.G, pair.D)]
    device.train_discriminator(0)
    server.train_generator()
    assert all(nosy.types == {torch.bfloat16} for nosy in inside)
    images = pair.fakes(pair.noise(4, torch.Generator())).data
    assert images.dtype == torch.float32 and pair.D(images).dtype == torch.float32
    assert {t.dtype for t in (pair.flat.vector, pair.flat.gradient)} == {torch.float32}
    assert device.optimizer.first.dtype == torch.float32
    # What is scored is what is exported: float32, to the bit that of a plain network.
    plain, _ = pair_of(architecture)
    plain.flat.vector.copy_(pair.flat.vector)
    z = torch.randn(4, 10)
    pair.G.eval()
    plain.G.eval()
    assert torch.equal(pair.G(z), plain.G(z))
    pair.G.train()
    plain.G.train()
    assert not torch.equal(pair.G(z), plain.G(z))


@pytest.mark.parametrize("loss", ["nonsaturating", "wgan-gp"])
def test_gradients_in_bfloat16_point_where_those_of_float32_do(loss):
    gradients = []
    for autocast in ("off", "bfloat16"):
        pair, _ = pair_of(autocast=autocast)
        x = torch.linspace(-1, 1, 8 * 3 * 32 * 32).view(8, 3, 32, 32).sin().requires_grad_()
        logits = pair.D(x)
        if loss == "wgan-gp":  # a gradient's gradient
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            slope.flatten(1).norm(dim=1).mean().backward()
        else:
            nn.functional.softplus(-logits).mean().backward()
        gradients.append(pair.flat.phi.grad.clone())
    cosine = nn.functional.cosine_similarity(*gradients, dim=0)
    assert 0.98 < cosine < 1
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=0.1)


def test_a_wrapped_network_is_still_its_own_class_and_copies():
    G, _ = build(ModelConfig(width=4, nz=5), (1, 16, 16))
    initialize(G, "fan_in", torch.Generator().manual_seed(0))
    names = set(G.state_dict())
    Compute(autocast="bfloat16").prepare(G)
    assert set(G.state_dict()) == names


def test_bfloat16_beside_float64_is_refused():
    training = replace(Config().training, precision="float64", autocast="bfloat16")
    link = replace(Config().link, wire_dtype="float64")
    with pytest.raises(UserError, match=r"training\.autocast is 'bfloat16', but must be 'off'"):
        replace(Config(), training=training, link=link)


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("flags : fpu amx_bf16\n", True),
        ("Features : fp asimd bf16\n", True),
        ("flags : fpu avx2 avx512f avx512_bf16x\n", False),
        ("model name: amx_bf16\nflags: fpu\n", False),
    ],
)
def test_which_processors_multiply_bfloat16(tmp_path, text, can):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert multiplies_bfloat16(str(path)) == can
    assert not multiplies_bfloat16(str(tmp_path / "missing"))


def test_a_processor_without_bfloat16_is_told_before_anything_starts(monkeypatch):
    from fedgan_mpi.training import preflight as checks

    training = replace(Config().training, autocast="bfloat16", device="cpu")
    config = replace(Config(), training=training)
    monkeypatch.setattr(checks, "multiplies_bfloat16", lambda: True)
    checks.check_machine(config)
    monkeypatch.setattr(checks, "multiplies_bfloat16", lambda: False)
    with pytest.raises(UserError) as told:
        checks.check_machine(config)
    assert str(told.value) == (
        "training.autocast is 'bfloat16', but this CPU has neither avx512_bf16 nor AMX and would "
        "be slower with it; use 'off'"
    )


# ------------------------------------------------------------ images, memory


def test_resident_images_are_those_of_the_shard():
    shard = toy_shards([20])[1]
    like = torch.zeros(0, dtype=torch.float64)
    resident, read = Images(shard, like, resident=True), Images(shard, like)
    assert read.resident is None  # in a CPU's memory they lie already
    assert resident.resident.dtype == torch.uint8
    for indices in (np.array([3, 1, 3, 19]), np.arange(20)[::-1].copy()):
        expected = torch.from_numpy(shard.images[indices].astype(np.float64) * (2 / 255) - 1)
        for images in (resident, read):
            torch.testing.assert_close(images.batch(indices), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_an_optimizer_allocates_nothing_once_warm(kind):
    G, D = build(ModelConfig(width=16), (1, 32, 32))
    flat = FlatParameters(G, D)
    optimizer = make_optimizer(flat.phi, kind=kind, lr=1e-3, betas=(0.5, 0.9))
    assert flat.phi.nbytes > 100_000

    def act():
        optimizer.zero_gradient()
        optimizer.step()

    act()
    assert allocated(act) < 1000
    assert copy.deepcopy(flat.phi).nbytes > 1000
