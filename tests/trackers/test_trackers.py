"""Trackers hold the numbers that they are given, continue when resumed, and cannot stop a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedgan_mpi import plugins
from fedgan_mpi.config import Config, require
from fedgan_mpi.config.record import RecordConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.trackers import Tracker, check_trackers, open_trackers

ROUND = {
    "participants": [1, 2], "d_loss": 0.5, "g_loss": None, "seconds": 0.25,
    "wireless_seconds": 2.0, "bytes_up": 1000, "images_seen": 64,
}  # fmt: skip
IMAGES = np.arange(4 * 3 * 8 * 8, dtype=np.uint8).reshape(4, 3, 8, 8)


def make_run(directory: Path, *names: str, first: int = 1, last: int = 2) -> None:
    """Report rounds `first` to `last`; the score of a round follows the next round."""
    config = Config(record=RecordConfig(trackers=names))
    with open_trackers(config) as opened:
        for tracker in opened:
            tracker.on_run_begin(directory, first - 1)
            for n in range(first, last + 1):
                tracker.on_round_end(n, {"round": n, **ROUND, "d_loss": n / 4})
                tracker.on_score([{"round": n - 1, "metric": "frechet_x-12", "value": 10.0 - n}])
                tracker.on_samples(n, IMAGES)


EXPECTED = {
    "loss/d_loss": {1: 0.25, 2: 0.5, 3: 0.75},
    "seconds/seconds": {1: 0.25, 2: 0.25, 3: 0.25},
    "seconds/wireless_seconds": {1: 2.0, 2: 2.0, 3: 2.0},
    "bytes/bytes_up": {1: 1000, 2: 1000, 3: 1000},
    "data/images_seen": {1: 64, 2: 64, 3: 64},
    "score/frechet_x-12": {0: 9.0, 1: 8.0, 2: 7.0},
}


def test_tensorboard_has_the_numbers_of_both_parts(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_run(tmp_path, "tensorboard", last=2)
    make_run(tmp_path, "tensorboard", first=3, last=3)
    board = reader.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert set(board.Tags()["scalars"]) == set(EXPECTED)
    for name, values in EXPECTED.items():
        assert {event.step: event.value for event in board.Scalars(name)} == values
    assert [image.step for image in board.Images("samples")] == [1, 2, 3]


def test_mlflow_has_the_numbers_of_both_parts(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_run(tmp_path, "mlflow", last=2)
    make_run(tmp_path, "mlflow", first=3, last=3)
    client = tracking.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("fedgan_mpi")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == tmp_path.name and run.info.status == "FINISHED"
    assert run.data.params["training.rounds"] == str(Config().training.rounds)
    assert set(run.data.metrics) == set(EXPECTED)
    for name, values in EXPECTED.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert {metric.step: metric.value for metric in history} == values
    pictures = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "samples")]
    assert sorted(pictures) == [f"samples/round_{n:06d}.png" for n in (1, 2, 3)]


def wandb_records(file: Path) -> list:
    """Return the records of a .wandb file: LevelDB's log format after a header of 7 bytes.

    A block has 32 KiB. A piece of a record has a header: checksum (4 bytes), length (2), kind (1).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, records, pieces = file.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        pieces += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            records.append(Record.FromString(pieces))
            pieces = b""
    return records


def test_wandb_has_the_numbers_of_both_parts_without_a_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for first, last in ((1, 2), (3, 3)):
        make_run(tmp_path, "wandb", first=first, last=last)
        wandb.teardown()  # as at the end of a process: only then, files are complete
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one run in two parts
    found: dict[str, dict[int, float]] = {}
    for file in files:
        records = wandb_records(file)
        (started,) = (each.run for each in records if each.WhichOneof("record_type") == "run")
        assert started.project == "fedgan_mpi" and started.display_name == tmp_path.name
        for record in records:
            if record.WhichOneof("record_type") == "history":
                line = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                for name, value in line.items():
                    if name in EXPECTED:
                        found.setdefault(name, {})[line["round"]] = value
    assert found == EXPECTED
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples_*.png"))) == 3


@pytest.mark.parametrize(
    "fails", ["on_run_begin", "on_round_end", "on_score", "on_samples", "close"]
)
def test_a_tracker_that_fails_is_named_once_and_others_go_on(tmp_path, capsys, fails):
    calls = []

    class Good(Tracker):
        def on_round_end(self, round, metrics):
            calls.append(round)

    def fail(*_):
        raise RuntimeError("lost\nconnection")

    Bad = type("Bad", (Tracker,), {fails: fail, "__module__": __name__})
    names = [plugins.register("record.trackers", code) for code in (Bad, Good)]
    make_run(tmp_path, *names)
    assert capsys.readouterr().out == (
        f"record.trackers: {names[0]} raised RuntimeError: lost connection; the run goes on "
        "without it\n"
    )
    assert calls == [1, 2]


def test_missing_packages_and_wrong_names_are_refused(monkeypatch):
    monkeypatch.setattr(require, "find_spec", lambda name: None if name == "wandb" else name)
    check_trackers(("tensorboard", "mlflow", "file.py:Mine"))
    with pytest.raises(UserError, match=r"has 'wandb', but the package wandb is not installed"):
        check_trackers(("tensorboard", "wandb"))
    with pytest.raises(UserError, match=r"record\.trackers is 'wandbb', but must be one of .*did"):
        RecordConfig(trackers=("wandbb",))
    with pytest.raises(UserError, match="a list of different names"):
        RecordConfig(trackers=("wandb", "wandb"))
    assert RecordConfig(trackers=("wandb",), tensorboard=True).all_trackers == (
        "wandb", "tensorboard",
    )  # fmt: skip
