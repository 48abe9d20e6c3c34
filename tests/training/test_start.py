"""A run that starts from the networks of another run (`training.start`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fedgan_mpi
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.checkpoint.format import checkpoints_of
from fedgan_mpi.config.io import read_provenance
from fedgan_mpi.errors import UserError
from fedgan_mpi.testing.mutations import rehash
from fedgan_mpi.training.api import to_config
from fedgan_mpi.training.digits import write_digits
from fedgan_mpi.training.start import Start, find_start

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {},
    "model": {"width": 4, "nz": 8},
    "evaluation": {"every": 0, "samples": 60},
    "training": {"batch_size": 8, "generator_batch_size": 8},
}


@pytest.fixture(scope="module", autouse=True)
def shards(tmp_path_factory) -> None:
    """Use the same shards in all runs; to write them takes longer than to train."""
    directory = tmp_path_factory.mktemp("data") / "shards"
    write_digits(to_config({"data": {"devices": 2}}), directory)
    SECTIONS["data"]["shards"] = str(directory)


def train(directory: Path, name: str, *, rounds: int = 1, **changes: dict[str, Any]) -> Path:
    """Train in this process and return the run directory."""
    training = {"rounds": rounds, **changes.pop("training", {})}
    changes |= {"training": training, "run": {"directory": str(directory), "name": name}}
    names = {*SECTIONS, *changes}
    config = {each: {**SECTIONS.get(each, {}), **changes.get(each, {})} for each in names}
    return fedgan_mpi.train(config).path


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """A finished run of two rounds. It must not be changed."""
    return train(tmp_path_factory.mktemp("start"), "before", rounds=2)


def server_state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints_of(run)[-1] / "server.safetensors")


STILL = {"generator_steps": 0, "discriminator_steps": 0}
"""No step: the networks stay as they start."""


def test_both_networks_and_the_average_start_from_a_run(before, tmp_path):
    started = server_state(train(tmp_path, "a", training={"start": str(before), **STILL}))
    new, expected = server_state(train(tmp_path, "b", training=STILL)), server_state(before)
    for name in ("vector", "average"):
        assert torch.equal(started[name], expected[name])
        assert not torch.equal(new[name], expected[name])
    assert not torch.equal(expected["vector"][: len(expected["average"])], expected["average"])
    assert started["moments.steps"] == 0 and not started["moments.first"].any()


def test_each_form_of_the_path_is_recorded(before, tmp_path):
    checkpoint = checkpoints_of(before)[-1]
    files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    expected = {
        "path": str(checkpoint.resolve()),
        "round": 2,
        "sha256": files["server.safetensors"]["sha256"],
    }
    for path in (before, checkpoint, checkpoint / "server.safetensors"):
        assert find(path).provenance == expected
    run = train(tmp_path, "a", training={"start": str(before), **STILL})
    assert read_provenance(run)["start"] == expected


def test_a_generator_file_starts_the_generator_alone(before, tmp_path):
    path = before / "generator.safetensors"
    started = server_state(train(tmp_path, "a", training={"start": str(path), **STILL}))
    new, expected = server_state(train(tmp_path, "b", training=STILL)), server_state(before)
    size = len(expected["average"])
    assert torch.equal(started["average"], expected["average"])  # which the file holds
    assert torch.equal(started["vector"][:size], expected["average"])
    assert torch.equal(started["vector"][size:], new["vector"][size:])


IN_BETWEEN: dict[str, dict[str, Any]] = {
    "averaged moments": {"algorithm": {"name": "fedgan", "moments": "averaged"}},
    "control variates": {
        "algorithm": {"name": "ren", "control_variates": True},
        "training": {"optimizer": "sgd"},
    },
}


@pytest.mark.parametrize("changes", IN_BETWEEN.values(), ids=IN_BETWEEN.keys())
def test_another_order_in_memory_holds_the_same_networks(before, tmp_path, changes):
    """Also if the vector has other sections between the networks, and on the way back."""
    training = {"memory_format": "channels_last", "start": str(before), "discriminator_steps": 0}
    if changes["algorithm"]["name"] == "ren":
        training["generator_steps"] = 0
    training |= changes.get("training", {})
    other = train(tmp_path, "a", algorithm=changes["algorithm"], training=training)
    assert len(server_state(other)["vector"]) > len(server_state(before)["vector"])
    back = server_state(train(tmp_path, "b", training={"start": str(other), **STILL}))
    assert torch.equal(back["vector"], server_state(before)["vector"])


def test_another_precision_holds_the_same_networks(before, tmp_path):
    exact = {"precision": "float64", "start": str(before), **STILL}
    wide = server_state(train(tmp_path, "a", link={"wire_dtype": "float64"}, training=exact))
    assert torch.equal(wide["vector"], server_state(before)["vector"].double())


# ---------------------------------------------------------------- discriminators of devices


def own_discriminators(run: Path) -> list[torch.Tensor]:
    files = sorted(checkpoints_of(run)[-1].glob("device_*"))
    return [load_file(file)["own.0"] for file in files]


def test_devices_that_keep_a_discriminator_all_start_from_the_one(before, tmp_path):
    training = {"start": str(before), "discriminator_steps": 0}
    size = len(server_state(before)["average"])
    expected = server_state(before)["vector"][size:]
    run = train(tmp_path, "a", algorithm={"name": "uagan"}, training=training)
    for own in own_discriminators(run):
        assert torch.equal(own, expected)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A run whose devices have different discriminators."""
    directory = tmp_path_factory.mktemp("kept")
    return train(directory, "kept", rounds=2, algorithm={"name": "mdgan", "epochs": 0})


def test_discriminators_of_devices_stay_with_their_devices(kept, tmp_path):
    one, other = own_discriminators(kept)
    assert not torch.equal(one, other)
    training = {"start": str(kept), "discriminator_steps": 0, "memory_format": "channels_last"}
    run = train(tmp_path, "a", algorithm={"name": "uagan"}, training=training)
    training |= {"start": str(run), "memory_format": "contiguous"}
    run = train(tmp_path, "b", algorithm={"name": "ensemble"}, training=training)
    assert all(map(torch.equal, own_discriminators(run), (one, other)))
    at_server = [server_state(run)[f"kept.discriminator_{k}"] for k in (1, 2)]
    assert all(map(torch.equal, at_server, (one, other)))


def test_discriminators_of_devices_do_not_become_others(kept):
    with pytest.raises(UserError, match=r"each of its 2 devices kept its own D, .* algorithm ren"):
        find(kept)
    find(kept, algorithm={"name": "uagan"})
    with pytest.raises(UserError, match="kept its own D, and this run has 3 devices"):
        find(kept, algorithm={"name": "uagan"}, devices=3)


def test_fixed_layers_are_the_other_runs(before, kept, tmp_path):
    """Also where devices keep the rest of D."""
    algorithm = {"name": "uagan"}
    size, first = len(server_state(before)["average"]), 4 * 1 * 4 * 4
    expected = server_state(before)["vector"][size : size + first]
    start = before
    for name in ("a", "b"):
        training = {"freeze_discriminator": 1, "start": str(start)}
        start = train(tmp_path, name, algorithm=algorithm, training=training)
        assert torch.equal(server_state(start)["vector"][-first:], expected)
    with pytest.raises(UserError, match=r"freeze_discriminator must be at most 1"):
        find(start, algorithm=algorithm, training={"freeze_discriminator": 2})
    training = {"start": str(start), "discriminator_steps": 0}
    thawed = own_discriminators(train(tmp_path, "c", algorithm=algorithm, training=training))
    for own, rest in zip(thawed, own_discriminators(start), strict=True):
        assert torch.equal(own, torch.cat([expected, rest]))


# ---------------------------------------------------------------- resume


class EndAfter(Callback):
    """Ends the training after some rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def on_round_end(self, round: int, metrics: Any) -> bool:
        return round == self.rounds


def test_a_run_resumes_without_its_start(before, tmp_path):
    """The networks in its checkpoint count, even if the other run is gone."""
    source = tmp_path / "source"
    shutil.copytree(before, source)
    config = {
        **SECTIONS,
        "run": {"directory": str(tmp_path), "name": "a"},
        "training": {**SECTIONS["training"], "rounds": 4, "start": str(source)},
        "checkpoint": {"every": 2},
    }
    whole = fedgan_mpi.train(config).path
    config["run"] = {"directory": str(tmp_path), "name": "b"}
    part = fedgan_mpi.train(config, callbacks=[EndAfter(2)]).path
    shutil.rmtree(source)
    resumed = fedgan_mpi.train(config, resume=part).path
    for name, tensor in server_state(whole).items():
        assert torch.equal(server_state(resumed)[name], tensor), name
    provenance = read_provenance(resumed)
    assert "start" not in provenance and provenance["earlier"][0]["start"]["round"] == 2


# ---------------------------------------------------------------- mistakes


def find(start: Path | str, devices: int = 2, **changes: dict[str, Any]) -> Start:
    """Find the networks for a run on images of 16 pixels and 10 classes."""
    sections = {**SECTIONS, "training": {**SECTIONS["training"], "start": str(start)}}
    names = {*sections, *changes}
    config = to_config(
        {name: {**sections.get(name, {}), **changes.get(name, {})} for name in names}
    )
    size = config.model.size or 16
    return find_start(config, (1, size, size), classes=10, devices=devices)


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "architecture": ({"architecture": "sngan"}, "model.architecture 'dcgan'", "'sngan'"),
    "size": ({"size": 17}, "images of shape (1, 16, 16)", "(1, 17, 17)"),
    "nz": ({"nz": 9}, "model.nz 8", "9"),
    "width": ({"width": None}, "model.width 4", "32"),
    "classes": ({"conditional": True}, "model.conditional False", "True"),
    "norm": ({"discriminator_norm": "batch"}, "model.discriminator_norm 'none'", "'batch'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_networks_are_refused(before, mistake):
    model, then, now = MISTAKES[mistake]
    for file in ("", "generator.safetensors"):
        start = str(before / file)
        if mistake == "norm" and file:  # the norm of D does not concern G
            find(start, model=model)
            continue
        with pytest.raises(UserError) as error:
            find(start, model=model)
        difference = f"its networks have {then}, and those of this run {now}"
        assert str(error.value) == f"training.start is {start!r}, but {difference}"


def test_a_refusal_leaves_no_run_directory(before, tmp_path):
    with pytest.raises(UserError, match=r"its networks have model\.nz 8"):
        train(tmp_path, "a", model={"nz": 9}, training={"start": str(before)})
    assert not (tmp_path / "a").exists()


def remove_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def damage_state(run: Path) -> None:
    path = checkpoints_of(run)[-1] / "server.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def shorten_state(run: Path) -> None:
    """Replace the networks by others than the configuration says."""
    replace_vector(run, lambda vector: vector[:-1].clone())


def spoil_state(run: Path) -> None:
    replace_vector(run, lambda vector: vector.fill_(torch.nan))


def replace_vector(run: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = checkpoints_of(run)[-1] / "server.safetensors"
    state = load_file(path)
    save_file({**state, "vector": change(state["vector"])}, path)
    rehash(run, "server.safetensors")


DAMAGES: dict[Callable[[Path], None], str] = {
    remove_checkpoints: "but it has no checkpoint; name its generator's file to start G without D",
    damage_state: "is not what its checkpoint recorded",
    shorten_state: "but its networks have another number of parameters",
    spoil_state: "but its parameters are not finite",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_runs_are_named(before, tmp_path, damage):
    shutil.copytree(before, tmp_path / "other")
    damage(tmp_path / "other")
    with pytest.raises(UserError, match=DAMAGES[damage]):
        find(tmp_path / "other")


def test_a_generator_file_with_other_tensors_is_named(before, tmp_path):
    for name in ("generator.safetensors", "generator.json"):
        shutil.copy(before / name, tmp_path)
    path = tmp_path / "generator.safetensors"
    state = load_file(path)
    for change, message in (
        ({"layers.0.weight": torch.zeros(8, 8, 4, 5)}, "layers.0.weight has the shape"),
        ({"more": torch.zeros(1)}, "has another tensor more"),
    ):
        save_file({**state, **change}, path)
        with pytest.raises(UserError, match=message):
            find(path)
    del state["layers.0.weight"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"lacks the tensor layers\.0\.weight"):
        find(path)


def test_a_missing_path_is_named():
    with pytest.raises(UserError, match="'nowhere', but there is no such file or directory"):
        find("nowhere")
