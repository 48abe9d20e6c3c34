"""Server optimizers: the average update as a gradient (Reddi et al. 2021, arXiv:2003.00295)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.config import AggregationConfig
from fedgan_mpi.config.options import make_part
from fedgan_mpi.config.require import require
from fedgan_mpi.federation.server import Server

_KEY = "aggregation.server_optimizer"


class ServerOptimizer(ABC):
    """Turns the average update of a round into the change of the server's parameters.

    Options in `aggregation.server_options` are keywords of its constructor. Its tensors are those
    of `allocate`; checkpoints keep them.
    """

    def allocate(self, size: int, like: Tensor) -> dict[str, Tensor]:
        """Return its state for this many parameters, by name. like: dtype and device."""
        return {}

    @abstractmethod
    def change(self, update: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return the change of the parameters. update: average update Δ, (n,); read-only."""


class SGD(ServerOptimizer):
    """The update times a rate, with momentum. The default is the plain average."""

    def __init__(self, *, rate: float = 1.0, momentum: float = 0.0) -> None:
        """rate: η. momentum: β, from 0 to below 1."""
        require(rate > 0, "aggregation.server_options.rate", rate, "above 0")
        require(
            0 <= momentum < 1, "aggregation.server_options.momentum", momentum, "from 0 to below 1"
        )
        self.rate, self.momentum = rate, momentum

    def allocate(self, size: int, like: Tensor) -> dict[str, Tensor]:
        return {"momentum": like.new_zeros(size)} if self.momentum else {}

    def change(self, update: Tensor, state: dict[str, Tensor]) -> Tensor:
        if self.momentum:
            update = state["momentum"].mul_(self.momentum).add_(update)
        return self.rate * update


class _Adaptive(ServerOptimizer):
    """x ← x + η m / (√v + τ), with m ← β₁ m + (1 - β₁) Δ."""

    def __init__(
        self,
        *,
        rate: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
    ) -> None:
        """rate: η. betas: decay rates of m and v. tau: τ, which bounds the change where v is 0."""
        require(rate > 0, "aggregation.server_options.rate", rate, "above 0")
        require(
            all(0 <= b < 1 for b in betas),
            "aggregation.server_options.betas",
            list(betas),
            "two numbers from 0 to 1",
        )
        require(tau > 0, "aggregation.server_options.tau", tau, "above 0")
        self.rate, self.betas, self.tau = rate, betas, tau

    def allocate(self, size: int, like: Tensor) -> dict[str, Tensor]:
        # The paper starts v at τ² or above.
        return {"first": like.new_zeros(size), "second": like.new_full((size,), self.tau**2)}

    def change(self, update: Tensor, state: dict[str, Tensor]) -> Tensor:
        first, second = state["first"], state["second"]
        first.mul_(self.betas[0]).add_(update, alpha=1 - self.betas[0])
        self._accumulate(second, update.square())
        return self.rate * first / (second.sqrt() + self.tau)

    @abstractmethod
    def _accumulate(self, second: Tensor, squares: Tensor) -> None:
        """Add Δ² to v."""


class Adam(_Adaptive):
    """FedAdam: v ← β₂ v + (1 - β₂) Δ²."""

    def _accumulate(self, second: Tensor, squares: Tensor) -> None:
        second.mul_(self.betas[1]).add_(squares, alpha=1 - self.betas[1])


class Yogi(_Adaptive):
    """FedYogi: v ← v - (1 - β₂) Δ² sign(v - Δ²)."""

    def _accumulate(self, second: Tensor, squares: Tensor) -> None:
        second.sub_((1 - self.betas[1]) * squares * (second - squares).sign())


class Adagrad(_Adaptive):
    """FedAdagrad: v ← v + Δ²."""

    def _accumulate(self, second: Tensor, squares: Tensor) -> None:
        second.add_(squares)


class ServerStep(UpdateTransform):
    """Takes the server optimizer's step on parameters in place of the plain average.

    BatchNorm statistics and averaged moments stay averages.
    """

    def __init__(
        self, optimizer: ServerOptimizer, parameters: Sequence[Tensor], server: Server | None
    ) -> None:
        """parameters: 1-D parts of the server's vector. server: None on device ranks."""
        self._optimizer, self._parameters = optimizer, [each.detach() for each in parameters]
        if server is not None:
            self._before = [torch.empty_like(each) for each in self._parameters]
            self._states = [optimizer.allocate(len(each), like=each) for each in self._parameters]
            for n, state in enumerate(self._states):
                server.kept |= {f"{n}_{name}": tensor for name, tensor in state.items()}

    def before_average(self, t: int) -> None:
        for before, parameter in zip(self._before, self._parameters, strict=True):
            before.copy_(parameter)

    def on_server(self, t: int) -> None:
        for before, parameter, state in zip(
            self._before, self._parameters, self._states, strict=True
        ):
            change = self._optimizer.change(parameter - before, state)
            torch.add(before, change, out=parameter)


def make_server_optimizer(config: AggregationConfig) -> ServerOptimizer | None:
    """Return the configured server optimizer; None if it keeps the plain average.

    Raises UserError for a name that is none, or does not take its options.
    """
    name, options = config.server_optimizer, config.server_options
    optimizer = make_part(_KEY, name, ServerOptimizer, options)  # type: ignore[type-abstract]
    if type(optimizer) is SGD and optimizer.rate == 1 and optimizer.momentum == 0:
        return None
    return optimizer
