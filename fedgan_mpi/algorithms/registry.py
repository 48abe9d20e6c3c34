"""Algorithms by name, and how the configured one is made."""

from __future__ import annotations

from fedgan_mpi import plugins
from fedgan_mpi.algorithms.base import Algorithm
from fedgan_mpi.config import AlgorithmConfig
from fedgan_mpi.config.options import check_options
from fedgan_mpi.errors import UserError
from fedgan_mpi.federation.rank import RankState

_KEY = "algorithm.name"
ALGORITHMS: dict[str, type[Algorithm]] = {
    name: plugins.load(_KEY, name) for name in plugins.BUILT_IN["algorithms"]
}
"""The built-in algorithms."""


def algorithm_class(name: str) -> type[Algorithm]:
    """Return the class of a name or an import string. Raises UserError if it is no algorithm."""
    code = plugins.load(_KEY, name)
    if not (isinstance(code, type) and issubclass(code, Algorithm)):
        raise UserError(f"{_KEY} is {name!r}, but must be a subclass of Algorithm")
    missing = sorted(getattr(code, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{_KEY} is {name!r}, but {code.__name__} does not define {missing[0]}")
    return code


def make_algorithm(config: AlgorithmConfig, rank_state: RankState) -> Algorithm:
    """Make this rank's algorithm. Collective. Raises UserError for wrong options."""
    code = algorithm_class(config.name)
    given = ("rank_state",)
    return code(rank_state, **check_options(_KEY, config.name, config.options, given=given))


def check_algorithm_options(config: AlgorithmConfig) -> None:
    """Raise UserError if the algorithm does not exist, or does not take its options."""
    algorithm_class(config.name)
    check_options(_KEY, config.name, config.options, given=("rank_state",))
