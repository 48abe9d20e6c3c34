"""How a pair of networks is computed: number types on the inside, and the order in memory. Plain
torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Compute:
    """`training`'s options of that name."""

    autocast: Literal["off", "bfloat16"] = "off"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"

    def prepare(self, network: nn.Module) -> None:
        """Lay and wrap a network that is already where it will compute; before it is packed.

        Parameters and what comes in and out keep their type, and so do losses, gradients and
        optimizers. In evaluation mode a network computes as ever: what is scored is what is
        exported.
        """
        if self.memory_format == "channels_last":
            # Its kernels, which a convolution's output follows.
            network.to(memory_format=torch.channels_last)
        if self.autocast == "bfloat16":
            forward: Callable[..., Tensor] = network.forward
            device_type = next(network.parameters()).device.type

            def in_bfloat16(*inputs: Tensor) -> Tensor:
                if not network.training:
                    return forward(*inputs)
                # A cache of rounded parameters serves nothing: each is used once a pass. And a
                # recorded step must round them anew.
                with torch.autocast(device_type, torch.bfloat16, cache_enabled=False):
                    output = forward(*inputs)
                return output.to(inputs[0].dtype)

            network.forward = in_bfloat16


def use_tf32(allowed: bool) -> None:
    """Whether an NVIDIA GPU's tensor cores may round the factors of float32 products to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
