"""What a run of dp_fedavg_gan has spent of its privacy, by Google's accountant (dp-accounting).

Device-level: what the updates of D tell about whether one device's whole shard was another's.
Exchanging a device moves the sum of updates, each at most C long, by up to 2 C, so noise of z C is
a Gaussian mechanism with multiplier z / 2. Knows neither MPI nor torch.
"""

from __future__ import annotations

import math
from collections import Counter

from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.participation import Participation


def check_privacy(config: Config, participation: Participation) -> None:
    """Raises UserError where ε cannot be told, or where the whole run would spend more than
    allowed."""
    algorithm, rounds = config.algorithm, config.training.rounds
    if not algorithm.traits.is_private:
        return
    try:
        import dp_accounting.rdp  # noqa: F401
    except ImportError:
        raise UserError(
            f"algorithm.name is {algorithm.name!r}, which needs dp-accounting to tell ε; "
            "install it with `pip install 'fedgan_mpi[privacy]'`"
        ) from None
    budget = algorithm.epsilon_budget
    if budget is None:
        return
    spent = epsilon(config, participation, rounds)
    if spent > budget:
        raise UserError(
            f"algorithm.epsilon_budget is {budget:g}, but {rounds} rounds with algorithm.noise "
            f"{algorithm.noise:g} spend {spent:.4g} (δ = {algorithm.delta:g}); "
            "raise the noise, or take fewer rounds or participants"
        )


def epsilon(config: Config, participation: Participation, rounds: int) -> float:
    """ε at `algorithm.delta` after so many rounds; inf without noise."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    algorithm = config.algorithm
    if rounds == 0 or algorithm.clip * algorithm.noise == 0:
        return math.inf if rounds else 0.0

    def after(event: dp_accounting.DpEvent, times: int) -> float:
        exchanged = dp_accounting.NeighboringRelation.REPLACE_ONE
        accountant = RdpAccountant(neighboring_relation=exchanged)
        return float(accountant.compose(event, times).get_epsilon(algorithm.delta))

    gaussian = dp_accounting.GaussianDpEvent(algorithm.noise / 2)
    if config.participation.policy == "random":
        # Both bounds hold; the sampled one is the smaller where few take part.
        devices, count = participation.devices, participation.count
        sampled = dp_accounting.SampledWithoutReplacementDpEvent(devices, count, gaussian)
        everyone = after(gaussian, rounds)
        return everyone if count == devices else min(everyone, after(sampled, rounds))
    # Known beforehand: whoever takes part most often has told most.
    often = Counter(k for t in range(rounds) for k in participation.participants(t))
    return after(gaussian, max(often.values()))
