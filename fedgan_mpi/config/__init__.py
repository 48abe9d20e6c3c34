"""All options of an experiment: meaning, type, unit and default. Imports neither MPI nor torch.

Each section is a dataclass. The dataclasses define the TOML keys, the flags, their help and their
checks. A key is named `section.key`, in files and on the command line.
"""

from __future__ import annotations

from fedgan_mpi.config.aggregation import AggregationConfig
from fedgan_mpi.config.algorithm import AlgorithmConfig
from fedgan_mpi.config.attack import AttackConfig
from fedgan_mpi.config.by_size import choose_by_size
from fedgan_mpi.config.checkpoint import CheckpointConfig
from fedgan_mpi.config.data import DataConfig
from fedgan_mpi.config.evaluation import (
    EvaluationConfig,
    check_metrics,
    least_samples,
)
from fedgan_mpi.config.experiment import Config
from fedgan_mpi.config.link import LinkConfig
from fedgan_mpi.config.log import LogConfig
from fedgan_mpi.config.model import MIN_SIZE, ModelConfig
from fedgan_mpi.config.participation import CHANNEL_POLICIES, ParticipationConfig
from fedgan_mpi.config.record import RecordConfig
from fedgan_mpi.config.run import RunConfig
from fedgan_mpi.config.training import TrainingConfig
from fedgan_mpi.config.wireless import WirelessConfig

__all__ = [
    "CHANNEL_POLICIES",
    "MIN_SIZE",
    "AggregationConfig",
    "AlgorithmConfig",
    "AttackConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LinkConfig",
    "LogConfig",
    "ModelConfig",
    "ParticipationConfig",
    "RecordConfig",
    "RunConfig",
    "TrainingConfig",
    "WirelessConfig",
    "check_metrics",
    "choose_by_size",
    "least_samples",
]
