"""Which layers of D are fixed, and that steps leave them as they are."""

from __future__ import annotations

import pytest
import torch
from toys import toy_networks

from fedgan_mpi.config import ModelConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.flat_parameters import FlatParameters
from fedgan_mpi.nn.freezing import count_trained, freeze_layers
from fedgan_mpi.nn.losses import nonsaturating
from fedgan_mpi.nn.optimizers import Adam
from fedgan_mpi.nn.registry import build, count_parameters
from fedgan_mpi.nn.regularizers import ZeroCenteredPenalty
from fedgan_mpi.nn.steps import Batch, discriminator_step, feedback, generator_step

FIRST_LAYERS = {
    # DCGAN normalizes after its second convolution. SNGAN's first block has two convolutions and
    # the convolution of its shortcut, each with spectral normalization.
    "dcgan": ["features.0", "features.2", "features.3", "features.5", "features.6"],
    "sngan": ["blocks.0.conv1", "blocks.0.conv2", "blocks.0.shortcut", "blocks.1.conv1"],
}


@pytest.mark.parametrize("architecture", FIRST_LAYERS)
def test_layers_are_modules_with_parameters_of_their_own(architecture):
    for n in range(len(FIRST_LAYERS[architecture]) + 1):
        _, D = build(ModelConfig(architecture=architecture, width=4), (3, 64, 64))
        names = FIRST_LAYERS[architecture][:n]
        assert freeze_layers(D, n) == names
        for name, parameter in D.named_parameters():
            is_fixed = any(name.startswith(f"{each}.") for each in names)
            assert parameter.requires_grad == (not is_fixed), name
        fixed = sum(p.numel() for each in names for p in D.get_submodule(each).parameters())
        assert count_trained(D) == count_parameters(D) - fixed


def test_at_least_one_layer_trains():
    _, D = toy_networks()
    freeze_layers(D, 2)
    with pytest.raises(UserError) as error:
        freeze_layers(D, 3)
    assert str(error.value) == (
        "training.freeze_discriminator is 3, but must be at most 2: D has 3 layers, and at least "
        "one must train"
    )


def test_steps_leave_fixed_layers_and_train_the_others():
    """Steps of G, feedback and penalties exclude D from their gradients and include it again."""
    G, D = toy_networks()
    freeze_layers(D, 1)
    flat = FlatParameters(G, D)
    assert len(flat.fixed) == 128 and len(flat.phi) + 128 == count_parameters(D)
    optimizers = [Adam(each, lr=0.01, betas=(0.5, 0.999)) for each in (flat.theta, flat.phi)]
    before = {key: value.clone() for key, value in D.state_dict().items()}
    torch.manual_seed(0)
    for _ in range(3):
        z, real = (Batch(torch.randn(4, *shape).double()) for shape in ((3,), (1, 4, 4)))
        fake = Batch(z.through(G).detach())
        discriminator_step(D, nonsaturating, optimizers[1], real, fake, ZeroCenteredPenalty(1.0))
        generator_step(G, D, nonsaturating, optimizers[0], z)
        assert feedback(D, nonsaturating, fake)[1].abs().sum() > 0
        assert [name for name, p in D.named_parameters() if not p.requires_grad] == ["first.weight"]
    changed = [key for key, value in D.named_parameters() if not torch.equal(value, before[key])]
    assert changed == ["norm.weight", "norm.bias", "last.weight", "last.bias"]
    assert D.first.weight.grad is None
