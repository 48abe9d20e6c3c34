"""Every knob of an experiment: its meaning, type, unit and default. Knows neither MPI nor torch.

The classes, one a section, are the one source of the TOML keys, the flags, their help and their
checks; `command_line.py` reads them. A key is named `section.key`, in a file as well as on the
command line.
"""

from __future__ import annotations

from fedgan_mpi.config.algorithm import AlgorithmConfig
from fedgan_mpi.config.experiment import Config
from fedgan_mpi.config.link import LinkConfig
from fedgan_mpi.config.model import NETWORK_SIZES, SNGAN_SIZES, ModelConfig
from fedgan_mpi.config.participation import CHANNEL_POLICIES, ParticipationConfig
from fedgan_mpi.config.run import (
    METRICS,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    Metric,
    RecordConfig,
    RunConfig,
    check_metrics,
    least_samples,
)
from fedgan_mpi.config.training import TrainingConfig
from fedgan_mpi.config.wireless import WirelessConfig

__all__ = [
    "CHANNEL_POLICIES",
    "METRICS",
    "NETWORK_SIZES",
    "SNGAN_SIZES",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LinkConfig",
    "Metric",
    "ModelConfig",
    "ParticipationConfig",
    "RecordConfig",
    "RunConfig",
    "TrainingConfig",
    "WirelessConfig",
    "check_metrics",
    "least_samples",
]
