"""Builds and initializes the configured pair of networks, in plain torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from fedgan_mpi import plugins
from fedgan_mpi.config import ModelConfig
from fedgan_mpi.config.model import Initialization
from fedgan_mpi.config.options import check_options
from fedgan_mpi.errors import UserError
from fedgan_mpi.hardware.placement import single_thread

_KEY = "model.architecture"
_GIVEN = ("image_shape", "nz", "classes")


def build(
    model: ModelConfig, image_shape: tuple[int, int, int], classes: int = 0, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Return the configured (G, D) for images of shape (C, H, W).

    classes: Number of classes; 0 for unconditional networks.
    seed: For networks that are not built in. They draw their initial parameters from torch's global
        stream, which is restored afterwards.

    Raises UserError if such networks have wrong options or outputs.
    """
    if model.is_built_in:
        return build_from(model.architecture, image_shape, model.nz, classes, **_sizes(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pair = build_from(model.architecture, image_shape, model.nz, classes, **model.options)
    check_pair(model.architecture, *pair, image_shape=image_shape, nz=model.nz, classes=classes)
    return pair


def build_from(
    architecture: str, image_shape: tuple[int, int, int], nz: int, classes: int, **options: Any
) -> tuple[nn.Module, nn.Module]:
    """Return (G, D) of a name or an import string. Raises UserError naming it for any mistake."""
    make = plugins.load(_KEY, architecture)
    if plugins.is_built_in(_KEY, architecture):
        pair: tuple[nn.Module, nn.Module] = make(image_shape, nz, classes, **options)
        return pair
    typed = check_options(_KEY, architecture, options, given=_GIVEN)
    try:
        built = make(image_shape, nz, classes, **typed)
    except Exception as error:
        raise _refusal(architecture, f"its build raised {describe(error)}") from error
    if not (
        isinstance(built, tuple)
        and len(built) == 2
        and all(isinstance(n, nn.Module) for n in built)
    ):
        what = type(built).__name__
        raise _refusal(architecture, f"its build returned a {what}, but must return (G, D)")
    return built


def check_network_options(model: ModelConfig) -> None:
    """Raise UserError if the networks do not exist, or do not take their options."""
    if not model.is_built_in:
        check_options(_KEY, model.architecture, model.options, given=_GIVEN)


@torch.no_grad()
def check_pair(
    architecture: str,
    G: nn.Module,
    D: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    nz: int,
    classes: int,
) -> None:
    """Raise UserError unless G and D map two inputs to outputs of the right shapes.

    Buffers of the networks and torch's global stream are not changed. Networks on the device
    `meta` have shapes only.
    """
    if any(not list(network.parameters()) for network in (G, D)):
        raise _refusal(architecture, "G and D must have parameters")
    like = next(G.parameters())
    z = torch.zeros(2, nz, dtype=like.dtype, device=like.device)
    labels = [torch.zeros(2, classes, dtype=like.dtype, device=like.device)] if classes else []
    buffers = {**dict(G.named_buffers(prefix="G")), **dict(D.named_buffers(prefix="D"))}
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        with torch.random.fork_rng(devices=[]):
            images = G(z, *labels)
            shape = tuple(getattr(images, "shape", ()))
            if shape != (2, *image_shape):
                raise _refusal(
                    architecture,
                    f"G of two latent vectors has the shape {shape}, but must have "
                    f"{(2, *image_shape)}",
                )
            logits = D(images, *labels)
    except UserError:
        raise
    except Exception as error:
        raise _refusal(architecture, f"its networks raised {describe(error)}") from error
    for name, buffer in buffers.items():
        buffer.copy_(before[name])
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2,):
        raise _refusal(
            architecture,
            f"D of two images has the shape {shape}, but must have (2,), one logit each",
        )
    if images.device.type != "meta" and not (images.abs() <= 1 + 1e-6).all():
        raise _refusal(architecture, "G gives numbers outside of [-1, 1]; end it with tanh")


def describe(error: Exception) -> str:
    """Return an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _sizes(model: ModelConfig) -> dict[str, Any]:
    """Return the options of built-in networks."""
    options: dict[str, Any] = {"width": model.width}
    if model.architecture == "dcgan":
        options["discriminator_norm"] = model.discriminator_norm
    return options


def _refusal(architecture: str, problem: str) -> UserError:
    return UserError(f"{_KEY} is {architecture!r}, but {problem}")


def initialize(network: nn.Module, kind: Initialization, stream: torch.Generator) -> None:
    """Draw a network's initial parameters from `stream`, in place.

    fan_in: torch's default for convolutions, uniform with variance 1/(3 · fan-in). dcgan: N(0,
    0.02) for convolutions and N(1, 0.02) for BatchNorm scales (Radford et al. 2016). The latter
    suits wide networks. In narrow ones it makes activations so small that training stagnates for
    some hundred rounds. orthogonal: matrices with orthonormal rows or columns (Saxe et al. 2014,
    arXiv:1312.6120).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # With spectral normalization, `weight` is computed from the trained parameter.
            parametrizations = getattr(module, "parametrizations", None)
            weight = parametrizations.weight.original if parametrizations else module.weight
            if kind == "dcgan":
                nn.init.normal_(weight, 0.0, 0.02, generator=stream)
            elif kind == "orthogonal":
                with single_thread():  # factors have the same bits on all ranks
                    nn.init.orthogonal_(weight, generator=stream)
            else:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=stream)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            if kind == "dcgan":
                nn.init.normal_(module.weight, 1.0, 0.02, generator=stream)
    # Torch drew the singular vectors of spectral normalization from its global stream.
    for name, buffer in network.named_buffers():
        if name.endswith((".0._u", ".0._v")):
            nn.init.normal_(buffer, generator=stream)
            buffer.copy_(normalize(buffer, dim=0))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
