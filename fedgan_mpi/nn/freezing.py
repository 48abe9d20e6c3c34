"""FreezeD: the first layers of D keep the parameters they have (Mo et al. 2020, arXiv:2002.10964).

Fixed parameters need no gradient. Plain torch, without ranks.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fedgan_mpi.errors import UserError


def layers(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return name -> parameters of each layer, in the order of `network.named_modules()`.

    A layer is a module with parameters in itself, not in a submodule. A parametrization, such as
    spectral normalization, belongs to the layer whose weight it computes.
    """
    found = {}
    for name, module in network.named_modules():
        if "parametrizations" in name.split("."):
            continue
        own = list(module.parameters(recurse=False))
        if is_parametrized(module):
            own += module.parametrizations.parameters()
        if own:
            found[name] = own
    return found


def freeze_layers(D: nn.Module, count: int) -> list[str]:
    """Fix the parameters of the first `count` layers, and return the names of these layers.

    Raises UserError if no layer would be trained.
    """
    found = layers(D)
    if count > 0 and count >= len(found):
        raise UserError(
            f"training.freeze_discriminator is {count}, but must be at most {len(found) - 1}: "
            f"D has {len(found)} layers, and at least one must train"
        )
    for own in list(found.values())[:count]:
        for parameter in own:
            parameter.requires_grad_(False)
    return list(found)[:count]


def count_trained(network: nn.Module) -> int:
    """Return the number of parameters that are not fixed."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
