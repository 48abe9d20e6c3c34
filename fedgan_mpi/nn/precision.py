"""Autocast and memory format of a network, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn


def prepare_network(
    network: nn.Module,
    *,
    autocast: Literal["off", "bfloat16"] = "off",
    memory_format: Literal["contiguous", "channels_last"] = "contiguous",
) -> None:
    """Set a network's memory format and autocast, in place.

    Call it after the network is on its device, and before its parameters become views of a flat
    vector. With autocast, only layers inside the network compute in bfloat16. Inputs, outputs,
    parameters, gradients and losses keep their type. Evaluation mode ignores autocast, so
    scored images equal the exported generator's.
    """
    if memory_format == "channels_last":
        # This converts the kernels; a convolution's output takes their format.
        network.to(memory_format=torch.channels_last)
    if autocast == "bfloat16":
        forward: Callable[..., Tensor] = network.forward
        device_type = next(network.parameters()).device.type

        def autocast_forward(*inputs: Tensor) -> Tensor:
            if not network.training:
                return forward(*inputs)
            # A cache of rounded parameters saves nothing, because each pass uses them once. A
            # captured CUDA graph must round them in every replay.
            with torch.autocast(device_type, torch.bfloat16, cache_enabled=False):
                output = forward(*inputs)
            return output.to(inputs[0].dtype)

        network.forward = autocast_forward
