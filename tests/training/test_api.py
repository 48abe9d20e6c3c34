"""`fedgan_mpi.train` in one process, as in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fedgan_mpi
from fedgan_mpi.callbacks import Callback
from fedgan_mpi.config import Config
from fedgan_mpi.errors import UserError
from fedgan_mpi.testing.runs import generator_bytes, stats_without_seconds


def small(directory: Path, name: str = "a", **training: Any) -> dict[str, dict[str, Any]]:
    return {
        "run": {"directory": str(directory), "name": name},
        "data": {"devices": 2},
        "model": {"width": 4, "nz": 8},
        "evaluation": {"every": 2, "samples": 60},
        "training": {"rounds": 4, **training},
    }


class Recorder(Callback):
    """Records the calls, and may ask to end the training."""

    def __init__(self, end_after: int | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.end_after = end_after

    def on_run_begin(self, run: Path, done: int) -> None:
        self.calls.append(("begin", done))

    def on_round_end(self, round: int, metrics: Mapping[str, Any]) -> bool:
        assert metrics["round"] == round and metrics["d_loss"] > 0
        self.calls.append(("round", round))
        return round == self.end_after

    def on_score(self, scores: Any) -> None:
        self.calls.append(("score", scores[0]["round"]))

    def on_run_end(self, result: Any) -> None:
        self.calls.append(("end", result.rounds))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Recorder]:
    recorder = Recorder()
    return fedgan_mpi.train(small(tmp_path_factory.mktemp("api")), callbacks=[recorder]), recorder


def test_a_run_in_one_process_is_complete(trained):
    result, _ = trained
    assert result.rounds == 4 and result.exit_status == 0
    assert (result.path / "report.html").exists()
    assert result.scores[0]["metric"].startswith("frechet_classifier_distance")
    assert result.scores[0]["round"] == 4
    images = result.generator(3, seed=1)
    assert images.shape == (3, 1, 16, 16)
    assert (images == fedgan_mpi.load_generator(result.path)(3, seed=1)).all()


def test_callbacks_see_the_run_in_order(trained):
    _, recorder = trained
    assert recorder.calls == [
        ("begin", 0), ("score", 0), ("round", 1), ("round", 2), ("round", 3), ("score", 2),
        ("round", 4), ("score", 4), ("end", 4),
    ]  # fmt: skip


def test_a_callback_sees_each_checkpoint_when_it_is_complete(tmp_path):
    seen = []

    class Copy(Callback):
        def on_checkpoint(self, round, directory):
            assert (directory / "checkpoint.json").exists()
            seen.append((directory.name, round))

    config = small(tmp_path) | {"checkpoint": {"every": 2}}
    fedgan_mpi.train(config, callbacks=[Copy()])
    # The first checkpoint holds the initial networks.
    assert seen == [("round_000000", 0), ("round_000002", 2), ("round_000004", 4)]


def test_a_second_run_in_the_same_process_has_the_same_bits(trained, tmp_path):
    result, _ = trained
    again = fedgan_mpi.train(small(tmp_path, "b"))
    assert stats_without_seconds(again.path) == stats_without_seconds(result.path)
    assert generator_bytes(again.path) == generator_bytes(result.path)


def test_a_callback_ends_the_training_after_the_next_round(tmp_path):
    recorder = Recorder(end_after=2)
    result = fedgan_mpi.train(small(tmp_path, rounds=50), callbacks=[Recorder(), recorder])
    assert result.rounds == 3 and result.exit_status == 0
    assert result.scores[0]["round"] == 3 and recorder.calls[-1] == ("end", 3)
    assert (result.path / "generator.safetensors").exists()


def test_a_run_is_resumed_with_more_rounds(trained, tmp_path):
    config = small(tmp_path, "longer")
    short = fedgan_mpi.train(config)
    recorder = Recorder()
    config["training"]["rounds"] = 6
    result = fedgan_mpi.train(config, resume=short.path, callbacks=[recorder])
    assert result.rounds == 6 and recorder.calls[0] == ("begin", 4)
    with pytest.raises(UserError, match=r"training.batch_size is 8, but must be 32 as in"):
        fedgan_mpi.train(small(tmp_path, "longer", batch_size=8), resume=short.path)


def test_configurations_may_be_a_file_or_the_dataclass(tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text("[training]\nrounds = 0\n")
    with pytest.raises(UserError, match=r"training\.rounds is 0, but must be at least 1"):
        fedgan_mpi.train(file)
    with pytest.raises(UserError, match=r"/nowhere/shards\.json"):
        fedgan_mpi.train(Config(), shards="/nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"training": {"round": 3}}, r"unknown key training\.round; did you mean training\.rounds"),
        ({"training": {"rounds": "many"}}, r"training\.rounds is many, but must be int"),
        ({"training": 3}, r"training is 3, but must be a table"),
        ({"trainig": {}}, r"trainig"),
    ],
)
def test_mistakes_are_one_sentence(config, message):
    with pytest.raises(UserError, match=message) as refused:
        fedgan_mpi.train(config)
    assert "\n" not in str(refused.value)


def test_a_failing_callback_is_reported_as_it_is(tmp_path):
    class Broken(Callback):
        def on_round_end(self, round, metrics):
            raise ZeroDivisionError("in a callback")

    with pytest.raises(ZeroDivisionError, match="in a callback"):
        fedgan_mpi.train(small(tmp_path, "broken"), callbacks=[Broken()])
    result = fedgan_mpi.train(small(tmp_path, "after", rounds=1))  # nothing is left locked
    assert result.rounds == 1
