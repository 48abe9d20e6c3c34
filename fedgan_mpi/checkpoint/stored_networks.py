"""Networks in checkpoints and generator files, as tensors by name.

A checkpoint has one vector, whose order depends on the options of its run. The networks themselves
are built from another configuration, that of the caller; each difference is found before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedgan_mpi.config import ModelConfig
from fedgan_mpi.config.model import default_discriminator_norm, default_width
from fedgan_mpi.config.parsing import DEFAULTS
from fedgan_mpi.federation.flat_parameters import FlatParameters, Player
from fedgan_mpi.nn.freezing import freeze_layers
from fedgan_mpi.nn.precision import prepare_network
from fedgan_mpi.nn.stored_shapes import check_stored_shapes

Tables = Mapping[str, Mapping[str, Any]]
"""A configuration: section -> key -> value."""
State = dict[str, Tensor]
"""Name -> tensor, as `nn.Module.state_dict` returns it."""
Shape = tuple[int, int, int]


class OtherNetworksError(ValueError):
    """A file holds other networks. The message is a clause that names what differs."""


@dataclass(frozen=True, kw_only=True)
class StoredNetworks:
    """The networks in a file."""

    generator: State
    average: State
    """The moving average of G; G itself if there is none."""
    discriminator: State | None
    """None if the file has none."""


def check_same_model(
    stored: Mapping[str, Any],
    stored_shape: tuple[int, ...] | None,
    stored_classes: int | None,
    model: ModelConfig,
    image_shape: Shape,
    classes: int,
) -> None:
    """Raise OtherNetworksError naming the first property in which two pairs of networks differ.

    stored: the other run's section [model]; a missing key has its default. stored_shape,
    stored_classes: of its images; None if unknown. classes: 0 without labels.
    """
    now = _describe(asdict(model), image_shape, classes)
    then = _describe(
        {key: stored.get(key, DEFAULTS[f"model.{key}"]) for key in asdict(model)},
        stored_shape or image_shape,
        classes if stored_classes is None else stored_classes,
    )
    for key, value in now.items():
        same = then[key] == value
        if key == "model.architecture":
            # The path of code may differ from machine to machine.
            same |= ":" in str(value) and ":" in str(then[key])
        if not same:
            raise OtherNetworksError(
                f"its networks have {key} {then[key]!r}, and those of this run {value!r}"
            )


def _describe(model: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Return the properties that determine the networks, with defaults resolved."""
    smallest, architecture = min(shape[1:]), str(model["architecture"])
    about = {
        "model.architecture": architecture,
        "images of shape": tuple(shape),
        "model.nz": model["nz"],
        "model.conditional": model["conditional"],
        "model.options": model["options"],
        "model.width": model["width"] or default_width(architecture, smallest),
    }
    if architecture == "dcgan":
        norm = model["discriminator_norm"]
        about["model.discriminator_norm"] = norm or default_discriminator_norm(smallest)
    if model["conditional"]:
        about["a number of classes of"] = classes
    return about


def read_generator_state(path: Path, G: nn.Module) -> StoredNetworks:
    """Read a generator file. Raises OtherNetworksError if it is damaged or holds another G."""
    try:
        check_stored_shapes(path, lambda: G)
        state = load_file(path)
    except OSError as error:
        raise OtherNetworksError(f"it cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        reason = "it is damaged" if isinstance(error, SafetensorError) else str(error)
        raise OtherNetworksError(reason) from None
    return StoredNetworks(generator=state, average=state, discriminator=None)


def unpack_networks(
    tensors: Mapping[str, Tensor], configuration: Tables, G: nn.Module, D: nn.Module
) -> StoredNetworks:
    """Return the networks in the server's state.

    configuration: of the other run. G, D: new networks, which are overwritten. Raises
    OtherNetworksError for other networks.
    """
    vector = tensors.get("vector")
    trained: tuple[tuple[Player, ...], ...] = (("D",), ("G", "D"))
    for players in trained:  # by devices, which the algorithm of the other run determines
        flat = _pack(G, D, vector, configuration, players)
        if _fits(vector, flat.vector):
            break
    _fill(flat.vector, vector)
    counters = [b for b in (*G.buffers(), *D.buffers()) if not b.is_floating_point()]
    for n, counter in enumerate(counters):
        counter.copy_(tensors.get(f"counters.{n}", counter))
    generator, discriminator = _copy(G), _copy(D)
    if (average := tensors.get("average")) is not None:
        _fill(flat.whole_generator, average)
    return StoredNetworks(generator=generator, average=_copy(G), discriminator=discriminator)


def unpack_discriminator(
    tensors: Mapping[str, Tensor],
    fixed: Tensor,
    configuration: Tables,
    G: nn.Module,
    D: nn.Module,
) -> State:
    """Return the D in the state of a device that has kept it, as `unpack_networks` does.

    fixed: the server's vector, which ends with the parameters that the other run did not train.
    """
    own = tensors.get("own.0")
    flat = _pack(G, D, own, configuration)
    _fill(flat.whole_discriminator, own)
    flat.fixed.copy_(fixed[len(fixed) - len(flat.fixed) :])
    return _copy(D)


def _pack(
    G: nn.Module,
    D: nn.Module,
    like: Tensor | None,
    configuration: Tables,
    players: tuple[Player, ...] = (),
) -> FlatParameters:
    """Pack networks in one vector in the order of another run.

    like: of that run's dtype. players: whose moments and control variates are in the vector, if
    that run had any.
    """
    algorithm, training = (configuration.get(name, {}) for name in ("algorithm", "training"))
    freeze_layers(D, training.get("freeze_discriminator", 0))
    for network in (G, D):
        if like is not None and like.is_floating_point():
            network.to(like.dtype)
        order = training.get("memory_format", DEFAULTS["training.memory_format"])
        prepare_network(network, memory_format=order)
    averages = algorithm.get("moments") == "averaged" and training.get("optimizer") == "adam"
    return FlatParameters(
        G,
        D,
        with_moments_of=players if averages else (),
        with_controls_of=players if algorithm.get("control_variates", False) else (),
    )


def _fits(stored: Tensor | None, section: Tensor) -> bool:
    return stored is not None and stored.shape == section.shape


def _fill(section: Tensor, stored: Tensor | None) -> None:
    """Copy stored numbers into a section of a vector. Raises OtherNetworksError if they differ in
    number."""
    if stored is None or not _fits(stored, section):
        raise OtherNetworksError("its networks have another number of parameters")
    section.copy_(stored)


def _copy(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
