"""What a detector finds after a round, and the shares of the devices from then on."""

from __future__ import annotations

from fedgan_mpi.algorithms.aggregation.detectors import Detector
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.random_streams import Purpose, numpy_stream
from fedgan_mpi.training.round_metrics import RoundMetrics
from fedgan_mpi.training.state import TrainState


def detect(
    detector: Detector, rank_state: RankState, t: int, metrics: RoundMetrics, state: TrainState
) -> dict[str, list[int] | list[float]]:
    """Look for outliers among the losses of round t, and set the weights of later rounds.

    Collective. Returns the keys of stats.jsonl. The losses are those of G if devices train it, else
    of D.
    """
    config = rank_state.config
    trains_generator = config.algorithm.traits.devices_train_generator
    losses = metrics.g_loss if trains_generator else metrics.d_loss
    losses = {k: loss for k, loss in losses.items() if k > 0}
    stream = numpy_stream(config.run.seed, Purpose.DETECTOR, t)
    found = rank_state.link.from_server(lambda: detector.outliers(t, losses, stream))
    counts = state.outlier_counts or [0] * rank_state.participation.devices
    state.outlier_counts = [count + (k in found) for k, count in enumerate(counts, start=1)]
    set_weights(detector, rank_state, state)
    return {"outliers": found, "device_weights": list(rank_state.participation.weights)}


def set_weights(detector: Detector | None, rank_state: RankState, state: TrainState) -> None:
    """Set the weights that follow from the counts of the rounds before."""
    if detector is not None:
        counts = state.outlier_counts or [0] * rank_state.participation.devices
        rank_state.participation.weights = detector.weights(counts)
