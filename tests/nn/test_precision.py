"""channels_last and bfloat16 autocast: their effects, and the results that stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toys import toy_shards

from fedgan_mpi.config import Config, ModelConfig, choose_by_size
from fedgan_mpi.data import Batches
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.federation.server import Server
from fedgan_mpi.nn.precision import prepare_network
from fedgan_mpi.nn.registry import build, initialize

SIZES = {"resnet": 48}  # with attention


def make_pair(architecture="dcgan", size=None, **training):
    config, size = Config(), size or SIZES.get(architecture, 32)
    config = replace(
        config,
        model=ModelConfig(architecture=architecture, width=8, nz=10),
        training=replace(config.training, batch_size=8, generator_batch_size=8, **training),
    )
    config = choose_by_size(config, (3, size, size))
    return build_networks(config, (3, size, size)), config


def device_and_server(**options):
    pair, config = make_pair(**options)
    stream = np.random.default_rng(0)
    shard = toy_shards([24])[1]
    shard.images = stream.integers(0, 256, (24, *pair.image_shape), dtype=np.uint8)
    batches = Batches(shard, batch_size=8, seed=0, device=1)
    return Device(1, batches, pair, config), Server(pair, config)


def kernels(network):
    return [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]


# ------------------------------------------------------------ channels_last


@pytest.mark.parametrize("architecture", ["dcgan", "sngan", "resnet"])
def test_channels_last_kernels_are_views_of_the_vector(architecture):
    contiguous, _ = make_pair(architecture)
    pair, _ = make_pair(architecture, memory_format="channels_last")
    for network, reference in ((pair.G, contiguous.G), (pair.D, contiguous.D)):
        for (name, value), expected in zip(
            network.state_dict().items(), reference.state_dict().values(), strict=True
        ):
            assert torch.equal(value, expected), name  # only the order in memory differs
        assert kernels(network) and len(kernels(network)) == len(kernels(reference))
        for p in kernels(network):
            assert p.is_contiguous(memory_format=torch.channels_last)
            assert p.grad.stride() == p.stride()
    assert not torch.equal(pair.flat.vector, contiguous.flat.vector)
    assert torch.equal(pair.flat.vector.sort().values, contiguous.flat.vector.sort().values)
    pair.flat.vector.fill_(0.25)
    assert all((p == 0.25).all() for p in (*pair.G.parameters(), *pair.D.parameters()))


@pytest.mark.parametrize("architecture", ["dcgan", "sngan", "resnet"])
def test_channels_last_gives_the_same_steps_up_to_rounding(architecture):
    results = []
    for memory_format in ("contiguous", "channels_last"):
        device, server = device_and_server(
            architecture=architecture, memory_format=memory_format, precision="float32"
        )
        losses = []
        for t in range(3):
            losses += [device.train_discriminator(t), server.train_generator()]
        results.append((losses, {**server.pair.D.state_dict(), **server.pair.G.state_dict()}))
    (losses, state), (expected_losses, expected_state) = results
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    for name, value in state.items():
        torch.testing.assert_close(value, expected_state[name], rtol=0.02, atol=2e-3)


def test_feature_maps_have_the_memory_format_of_the_kernels():
    pair, _ = make_pair(memory_format="channels_last")
    images = pair.G(torch.randn(4, 10))
    assert images.is_contiguous(memory_format=torch.channels_last)
    features = pair.D.features[0](images)
    assert features.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------ bfloat16 autocast


def record_layer_dtypes(network: nn.Module) -> set[torch.dtype]:
    """Return a set that collects the output types of all convolutions from now on."""
    dtypes: set[torch.dtype] = set()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda m, i, output: dtypes.add(output.dtype))
    return dtypes


@pytest.mark.parametrize("architecture", ["dcgan", "sngan", "resnet"])
def test_only_inner_layers_compute_in_bfloat16_and_only_in_training(architecture):
    device, server = device_and_server(architecture=architecture, autocast="bfloat16")
    pair = device.pair
    layer_dtypes = [record_layer_dtypes(network) for network in (pair.G, pair.D)]
    device.train_discriminator(0)
    server.train_generator()
    assert all(dtypes == {torch.bfloat16} for dtypes in layer_dtypes)
    images = pair.fakes(pair.noise(4, torch.Generator())).data
    assert images.dtype == torch.float32 and pair.D(images).dtype == torch.float32
    assert {t.dtype for t in (pair.flat.vector, pair.flat.gradient)} == {torch.float32}
    assert device.state()["moments"][0]["first"].dtype == torch.float32
    # In evaluation mode the images equal a reference without autocast.
    reference, _ = make_pair(architecture)
    reference.flat.vector.copy_(pair.flat.vector)
    z = torch.randn(4, 10)
    pair.G.eval()
    reference.G.eval()
    assert torch.equal(pair.G(z), reference.G(z))
    pair.G.train()
    reference.G.train()
    assert not torch.equal(pair.G(z), reference.G(z))


@pytest.mark.parametrize("loss", ["nonsaturating", "wgan-gp"])
def test_bfloat16_gradients_have_the_direction_and_norm_of_float32_ones(loss):
    gradients = []
    for autocast in ("off", "bfloat16"):
        pair, _ = make_pair(autocast=autocast)
        x = torch.linspace(-1, 1, 8 * 3 * 32 * 32).view(8, 3, 32, 32).sin().requires_grad_()
        logits = pair.D(x)
        if loss == "wgan-gp":  # a second derivative
            (input_gradients,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            input_gradients.flatten(1).norm(dim=1).mean().backward()
        else:
            nn.functional.softplus(-logits).mean().backward()
        gradients.append(pair.flat.phi.grad.clone())
    cosine = nn.functional.cosine_similarity(*gradients, dim=0)
    assert 0.98 < cosine < 1
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=0.1)


def test_autocast_changes_no_state_dict_key():
    G, _ = build(ModelConfig(width=4, nz=5), (1, 16, 16))
    initialize(G, "fan_in", torch.Generator().manual_seed(0))
    names = set(G.state_dict())
    prepare_network(G, autocast="bfloat16")
    assert set(G.state_dict()) == names


def test_bfloat16_autocast_with_float64_is_refused():
    training = replace(Config().training, precision="float64", autocast="bfloat16")
    link = replace(Config().link, wire_dtype="float64")
    with pytest.raises(UserError, match=r"training\.autocast is 'bfloat16', but must be 'off'"):
        replace(Config(), training=training, link=link)
