"""The timeline of a run with `algorithm.staleness`, from the state of a rank."""

from __future__ import annotations

from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.nn.losses import make_loss
from fedgan_mpi.wireless.clock import Clock
from fedgan_mpi.wireless.cost import CostFunctions, CostModel, payload_sizes
from fedgan_mpi.wireless.macs import count_macs
from fedgan_mpi.wireless.timeline import Timeline


def make_timeline(rank_state: RankState, algorithm: CostFunctions) -> Timeline:
    """Return the run's timeline. Devices in flight are no longer available to the policy."""
    config, pair = rank_state.config, rank_state.pair
    training, participation = config.training, rank_state.participation
    macs = count_macs(
        pair.G,
        pair.D,
        make_loss(training.loss_name, training.loss_options),
        pair.image_shape,
        nz=pair.nz,
        classes=pair.classes,
        regularizer=pair.regularizer,
    )
    theta, phi = pair.flat.theta.numel(), pair.flat.phi.numel()
    sizes = payload_sizes(config, pair.image_shape, theta, phi)
    cost_model = CostModel(config=config, sizes=sizes, macs=macs, images=participation.images)
    timeline = Timeline(
        Clock(algorithm, cost_model),
        participation.participants,
        staleness=config.algorithm.staleness,
        is_parallel=config.algorithm.schedule == "parallel",
        down=theta + phi,
        up=phi,
    )
    participation.busy = timeline.busy
    return timeline
