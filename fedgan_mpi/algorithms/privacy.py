"""Privacy loss ε of a run of dp_fedavg_gan, by Google's accountant (dp-accounting).

The guarantee is at device level: neighbouring data sets differ in the whole shard of one device.
Each update has norm at most C, so replacing a device changes the sum of updates by up to 2 C. Noise
of standard deviation z C is then a Gaussian mechanism with multiplier z / 2. Knows neither MPI nor
torch.
"""

from __future__ import annotations

import math
from collections import Counter

from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.participation import Participation


def check_privacy(config: Config, participation: Participation) -> None:
    """Check the privacy budget of the whole run.

    Raises UserError if the accountant is not installed, or if the run would exceed
    `algorithm.epsilon_budget`.
    """
    algorithm, rounds = config.algorithm, config.training.rounds
    if not algorithm.traits.is_private:
        return
    try:
        import dp_accounting.rdp  # noqa: F401
    except ImportError:
        raise UserError(
            f"algorithm.name is {algorithm.name!r}, which needs dp-accounting to compute ε; "
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
            "raise the noise, or reduce rounds or participants"
        )


def epsilon(config: Config, participation: Participation, rounds: int) -> float:
    """Return ε at `algorithm.delta` after this many rounds; infinity without noise."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    algorithm = config.algorithm
    if rounds == 0 or algorithm.clip * algorithm.noise == 0:
        return math.inf if rounds else 0.0

    def compose(event: dp_accounting.DpEvent, times: int) -> float:
        relation = dp_accounting.NeighboringRelation.REPLACE_ONE
        accountant = RdpAccountant(neighboring_relation=relation)
        return float(accountant.compose(event, times).get_epsilon(algorithm.delta))

    gaussian = dp_accounting.GaussianDpEvent(algorithm.noise / 2)
    if config.participation.policy == "random":
        # Both bounds hold. Subsampling gives the smaller one if few devices take part.
        devices, count = participation.devices, participation.count
        sampled = dp_accounting.SampledWithoutReplacementDpEvent(devices, count, gaussian)
        unsampled = compose(gaussian, rounds)
        return unsampled if count == devices else min(unsampled, compose(sampled, rounds))
    # Participants are public in advance: the most frequent participant has the largest loss.
    rounds_of = Counter(k for t in range(rounds) for k in participation.participants(t))
    return compose(gaussian, max(rounds_of.values()))
