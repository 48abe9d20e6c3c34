"""Algorithms by name, and how the configured one is made."""

from __future__ import annotations

from fedgan_mpi import plugins
from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.config import AlgorithmConfig
from fedgan_mpi.config.options import check_options
from fedgan_mpi.federation.rank import RankState

_KEY = "algorithm.name"
ALGORITHMS: dict[str, type[Algorithm]] = {
    name: plugins.load(_KEY, name) for name in plugins.BUILT_IN["algorithms"]
}
"""The built-in algorithms."""


def algorithm_class(name: str) -> type[Algorithm]:
    """Return the class of a name or an import string. Raises UserError if it is no algorithm."""
    return plugins.load_class(_KEY, name, Algorithm)  # type: ignore[type-abstract]


def make_algorithm(config: AlgorithmConfig, rank_state: RankState) -> Algorithm:
    """Make this rank's algorithm. Collective. Raises UserError for wrong options."""
    code = algorithm_class(config.name)
    given = ("rank_state",)
    return code(rank_state, **check_options(_KEY, config.name, config.options, given=given))


def check_algorithm_options(config: AlgorithmConfig) -> None:
    """Raise UserError if the algorithm does not exist, or does not take its options."""
    algorithm_class(config.name)
    check_options(_KEY, config.name, config.options, given=("rank_state",))
