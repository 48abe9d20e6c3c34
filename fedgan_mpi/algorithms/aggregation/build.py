"""The configured uplink: transforms, compressor, aggregation rule and server optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedgan_mpi.algorithms.aggregation.attack import Attack
from fedgan_mpi.algorithms.aggregation.compressed_uplink import CompressedUplink
from fedgan_mpi.algorithms.aggregation.compressors import make_compressor
from fedgan_mpi.algorithms.aggregation.control_share import ControlShare
from fedgan_mpi.algorithms.aggregation.row_uplink import RowUplink
from fedgan_mpi.algorithms.aggregation.rules import make_rule
from fedgan_mpi.algorithms.aggregation.server_optimizer import ServerStep, make_server_optimizer
from fedgan_mpi.algorithms.aggregation.stale_uplink import StaleUplink
from fedgan_mpi.algorithms.aggregation.transforms import UpdateTransform
from fedgan_mpi.algorithms.aggregation.uplink import Uplink
from fedgan_mpi.federation.rank import RankState
from fedgan_mpi.wireless.timeline import Timeline


def make_uplink(
    rank_state: RankState,
    vector: Tensor,
    transforms: Sequence[UpdateTransform] = (),
    last: Sequence[UpdateTransform] = (),
    timeline: Timeline | None = None,
    **options: Any,
) -> Uplink:
    """Return the uplink with the configured attack, rule and server optimizer. Collective.

    The order: attack, `transforms`, compressor, rule, their part on the server, server optimizer,
    `last`. timeline: of uploads that may arrive late. The other arguments are those of `Uplink`.
    """
    config = rank_state.config
    flat = rank_state.pair.flat
    parameters = _parts_of(vector, flat.theta, flat.phi)
    if config.attack.devices and config.attack.kind != "backdoor":
        transforms = [Attack(config.attack, config.run.seed, parameters), *transforms]
    if config.algorithm.control_variates:
        controls = _parts_of(vector, flat.control_of_generator, flat.control_of_discriminator)
        transforms = [*transforms, ControlShare(rank_state.participation, controls)]
    optimizer = make_server_optimizer(config.aggregation)
    if optimizer is not None:
        transforms = [*transforms, ServerStep(optimizer, parameters, rank_state.server)]
    transforms = [*transforms, *last]
    if timeline is not None:
        return StaleUplink(rank_state, vector, transforms, timeline)
    rule, compressor = make_rule(config.aggregation), make_compressor(config.aggregation)
    if compressor is not None:
        whole = (rank_state, vector, transforms, rule, compressor, _together(vector, parameters))
        return CompressedUplink(*whole)
    if rule is None:
        return Uplink(rank_state, vector, transforms, **options)
    return RowUplink(rank_state, vector, transforms, rule)


def _parts_of(vector: Tensor, *sections: Tensor) -> list[Tensor]:
    """Return the sections that the vector contains."""
    start = vector.storage_offset()
    stop = start + vector.numel()
    return [
        each.detach()
        for each in sections
        if start <= each.storage_offset() and each.storage_offset() + each.numel() <= stop
    ]


def _together(vector: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the part of a vector that holds these neighbouring parameters, in order."""
    start = parameters[0].storage_offset() - vector.storage_offset()
    return vector[start : start + sum(len(each) for each in parameters)]
