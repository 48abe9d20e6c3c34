"""Whole jobs with scores: in training, by `evaluate`, memorization, exports of the generator."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgan_mpi.__main__ import main
from fedgan_mpi.files import write_complete
from fedgan_mpi.testing.jobs import SMALL_NETWORKS, run_job
from fedgan_mpi.testing.runs import (
    copy_without_last_checkpoint,
    stats_lines,
    stats_without_seconds,
)

pytestmark = [pytest.mark.jobs, pytest.mark.slow]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("scores")
    done = run_job(
        3, "--run.name", "a", "--training.rounds", "10", *SMALL_NETWORKS, "--evaluation.every", "2",
        "--evaluation.metrics", '["frechet","classes","prdc"]', "--evaluation.samples", "200",
        "--checkpoint.every", "4", "--record.tensorboard", "true", "--record.grid_every", "3",
        "--model.conditional", "true", cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "a"


def scores(run_directory: Path) -> list[dict]:
    return [line for line in stats_lines(run_directory) if "metric" in line]


def test_a_score_is_written_one_round_later_with_its_own_round(finished_run):
    order = [(line["round"], "metric" in line) for line in stats_lines(finished_run)]
    scored = [round for round, is_score in dict.fromkeys(order) if is_score]
    assert scored == [0, 2, 4, 6, 8, 10]
    assert order.index((2, True)) == order.index((3, False)) + 1
    assert order.index((10, True)) == order.index((10, False)) + 1
    names = [line["metric"].split("-")[0] for line in scores(finished_run) if line["round"] == 4]
    assert names[0] == "frechet_classifier_distance"
    pairs = ("precision", "recall", "density", "coverage")
    assert names[3:] == [f"{name}_classifier" for name in pairs]
    grids = [path.stem for path in sorted((finished_run / "samples").iterdir())]
    assert grids == [f"round_{t:06d}" for t in (0, 2, 3, 4, 6, 8, 9, 10)]
    with Image.open(finished_run / "training.gif") as animation:
        assert animation.n_frames == 8


def test_a_run_killed_before_a_pending_score_resumes_to_the_same_scores(finished_run):
    """The checkpoint of round 8 is older than the score of round 8."""
    resumed = finished_run.with_name("resumed")
    copy_without_last_checkpoint(finished_run, resumed)
    (resumed / "generator.safetensors").unlink()
    done = run_job(3, "--resume", "runs/resumed", cwd=finished_run.parents[1])
    assert done.returncode == 0, done.stderr

    assert stats_without_seconds(resumed) == stats_without_seconds(finished_run)
    for name in ("generator.safetensors", "generator_best.safetensors", "generator_best.json"):
        assert (resumed / name).read_bytes() == (finished_run / name).read_bytes()


def test_tensorboard_has_the_same_numbers(finished_run):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = reader.EventAccumulator(str(finished_run / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    rounds = [line for line in stats_lines(finished_run) if "metric" not in line]
    read = {event.step: event.value for event in board.Scalars("loss/d_loss")}
    assert read == {line["round"]: np.float32(line["d_loss"]) for line in rounds}
    name = scores(finished_run)[0]["metric"]
    assert [event.step for event in board.Scalars(f"score/{name}")] == [0, 2, 4, 6, 8, 10]
    assert [image.step for image in board.Images("samples")] == [0, 2, 3, 4, 6, 8, 9, 10]


def evaluation(run_directory: Path) -> list[dict]:
    text = (run_directory / "evaluation.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_evaluate_equals_the_scores_of_training_on_any_number_of_ranks(finished_run):
    three, one = finished_run.with_name("three"), finished_run.with_name("one")
    for copy in (three, one):
        shutil.copytree(finished_run, copy)
    shutil.rmtree(one / "shards" / ".statistics")
    for ranks, copy in ((3, three), (1, one)):
        done = run_job(ranks, "evaluate", f"runs/{copy.name}", cwd=finished_run.parents[1])
        assert done.returncode == 0, done.stderr
    by_three, by_one = evaluation(three), evaluation(one)
    assert {line["of"]["generator"] for line in by_three} == {
        "checkpoints/round_000008", "checkpoints/round_000010", "generator.safetensors",
        "generator_best.safetensors",
    }  # fmt: skip
    for line, twin in zip(by_three, by_one, strict=True):
        assert line["of"] == twin["of"] and line["value"] == pytest.approx(twin["value"], rel=1e-6)
    for line in scores(finished_run):
        if line["round"] in (8, 10):
            name = f"checkpoints/round_{line['round']:06d}"
            (same,) = [
                each for each in by_three
                if each["of"]["generator"] == name and each["metric"] == line["metric"]
            ]  # fmt: skip
            assert same["value"] == pytest.approx(line["value"], rel=1e-6)
            assert same["floor"] == pytest.approx(line["floor"], rel=1e-6)

    # Existing values are kept, and missing ones are measured.
    first, last = by_three[0], by_three[-1]
    edited = [{**first, "value": 12345.0}, *by_three[1:-1]]
    text = "".join(json.dumps(line) + "\n" for line in edited if line["of"] != last["of"])
    write_complete(three / "evaluation.jsonl", text.encode())
    done = run_job(2, "evaluate", "runs/three", cwd=finished_run.parents[1])
    assert done.returncode == 0 and "12345" in done.stdout.replace("1.2345e+04", "12345")
    again = evaluation(three)
    assert again[0]["value"] == 12345 and len(again) == len(by_three)


def test_evaluate_takes_another_extractor_and_its_size(finished_run):
    cwd = finished_run.parents[1]
    size = ("--metrics", "frechet", "--samples", "20", "--imagenet-size", "32")
    refused = run_job(1, "evaluate", "runs/a", *size, cwd=cwd)
    assert refused.returncode != 0
    assert "imagenet_size is 32, but must be left out unless" in refused.stderr
    done = run_job(1, "evaluate", "runs/a", *size, "--evaluation.extractor=imagenet", cwd=cwd)
    assert done.returncode == 0, done.stderr
    lines = evaluation(finished_run)
    (finished_run / "evaluation.jsonl").unlink()
    assert {line["metric"] for line in lines} == {"frechet_imagenet_lite0_32px"}
    assert all(line["value"] > line["floor"] > 0 for line in lines)


def test_score_of_a_run_and_its_shards_equals_evaluate(finished_run):
    names = "frechet,classes,kid,prdc,per_class,kid_federated"
    metrics = ("--metrics", names, "--samples", "200")
    cwd = finished_run.parents[1]
    done = run_job(2, "score", "runs/a", "runs/a/shards", *metrics, "--out", "score.json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    values = json.loads((cwd / "score.json").read_text())["values"]
    assert run_job(1, "evaluate", "runs/a", *metrics, cwd=cwd).returncode == 0
    lines = evaluation(finished_run)
    (finished_run / "evaluation.jsonl").unlink()
    of_best = {
        line["metric"]: line["value"]
        for line in lines
        if line["of"]["generator"] == "generator_best.safetensors"
    }
    assert set(values) >= set(of_best) and len(of_best) > 15
    rare = set(values) - set(of_best)  # too few held-out images for a floor
    assert all(name.startswith("frechet_class_") for name in rare)
    for name, value in of_best.items():
        assert values[name] == pytest.approx(value, rel=1e-5), name


def test_memorization_finds_the_nearest_training_images(finished_run):
    """Distances of held-out images equal a plain search through all shards."""
    cwd = finished_run.parents[1]
    done = run_job(3, "memorization", "runs/a", "--count", "5", "--show-images", cwd=cwd)
    assert done.returncode == 0, done.stderr
    found = json.loads((finished_run / "memorization.json").read_text())

    import torch

    from fedgan_mpi.data import Manifest, read_shard, shard_name
    from fedgan_mpi.evaluation.features import read_extractor

    manifest = Manifest.read(finished_run / "shards")
    network = read_extractor(finished_run / "shards" / str(manifest.features))

    def features(path: Path) -> np.ndarray:
        images = read_shard(path, image_shape=manifest.image_shape).images
        with torch.no_grad():
            return network.features(torch.from_numpy(np.asarray(images))).double().numpy()

    heldout = features(finished_run / "shards" / "heldout.h5")
    devices = [features(finished_run / "shards" / shard_name(k)) for k in range(1, 9)]
    distances = [
        [np.linalg.norm(shard - point, axis=1).min() for shard in devices] for point in heldout
    ]
    expected = np.min(distances, axis=1)
    assert np.allclose(found["distance_of_heldout_images"], expected, rtol=1e-4)
    assert found["close_below"] == pytest.approx(np.quantile(expected, 0.05), rel=1e-4)
    assert len(found["distance"]) == 5
    close = np.array(found["distance"]) < found["close_below"]
    assert found["share_close"] == close.mean()
    with Image.open(finished_run / "memorization.png") as picture:
        with_originals = picture.size
    assert "device" not in found  # written only with --show-devices
    done = run_job(1, "memorization", "runs/a", "--count", "5", cwd=cwd)
    assert done.returncode == 0
    assert json.loads((finished_run / "memorization.json").read_text()) == found
    holders = []
    for ranks in (1, 3):
        done = run_job(ranks, "memorization", "runs/a", "--show-devices", cwd=cwd)
        assert done.returncode == 0, done.stderr
        holders.append(json.loads((finished_run / "memorization.json").read_text())["device"])
    assert holders[0] == holders[1] and len(holders[0]) == 64
    assert set(holders[0]) <= set(range(1, 9))
    done = run_job(1, "memorization", "runs/a", "--count", "5", cwd=cwd)
    with Image.open(finished_run / "memorization.png") as picture:
        assert picture.size[0] < with_originals[0]


def test_sample_styles_and_exports_use_the_same_generator(finished_run, tmp_path, capsys):
    def draw(*flags: str) -> np.ndarray:
        out = tmp_path / "x.png"
        assert main(["sample", str(finished_run), f"--out={out}", *flags]) == 0
        return np.asarray(Image.open(out))

    rows = draw("--style=classes", "--count=30")
    assert rows.shape == (10 * 66 + 2, 3 * 66 + 2)
    assert not np.array_equal(rows[2:66, 2:66], rows[68:132, 2:66])
    walk = draw("--style=interpolation", "--count=20")
    assert walk.shape == (2 * 66 + 2, 10 * 66 + 2)
    cells = [walk[2:66, 2 + 66 * n : 66 + 66 * n].astype(float) for n in range(10)]
    steps = [np.abs(a - b).mean() for a, b in pairwise(cells)]
    assert 0 < max(steps) < np.abs(cells[0] - cells[-1]).mean()

    import torch

    out = tmp_path / "g.pt2"
    assert main(["export", str(finished_run), "--format=torchexport", f"--out={out}"]) == 0
    program = torch.export.load(out).module()
    from fedgan_mpi.run.generator_file import load

    z, classes = torch.randn(3, 8), torch.eye(10)[:3]
    with torch.no_grad():
        expected = load(finished_run).network(z, classes)
        assert torch.allclose(program(z, classes), expected, atol=1e-5)
    assert main(["export", str(finished_run), "--format=onnx", "--out=/nowhere/g.onnx"]) == 1
    assert "/nowhere is not a directory" in capsys.readouterr().err
    pytest.importorskip("onnxruntime")
    assert main(["export", str(finished_run), "--format=onnx", f"--out={tmp_path / 'g.onnx'}"]) == 0
    assert "the same images" in capsys.readouterr().out
    for name in ("generator", "generator_best"):
        for suffix in (".json", ".safetensors"):
            shutil.copy(finished_run / f"{name}{suffix}", tmp_path)
    assert main(["export", str(tmp_path), "--format=torchexport"]) == 0
    assert (tmp_path / "generator_best.pt2").exists()  # export prefers the best generator
    assert not (tmp_path / "generator.pt2").exists()


def test_an_export_with_different_images_is_refused(finished_run, tmp_path, monkeypatch):
    import torch

    load_program = torch.export.load

    class WrongProgram:
        def __init__(self, file) -> None:
            self.network = load_program(file).module()

        def module(self):
            return lambda *inputs: self.network(*inputs) + 0.01

    monkeypatch.setattr(torch.export, "load", WrongProgram)
    out = tmp_path / "g"
    assert main(["export", str(finished_run), "--format=torchexport", f"--out={out}"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_share_of_images_with_a_backdoor_is_in_the_record(tmp_path):
    """No digit is white in the corner."""
    done = run_job(
        2, "--run.name", "a", "--training.rounds", "2", *SMALL_NETWORKS, "--attack.kind",
        "backdoor", "--attack.devices", "[1]", "--evaluation.samples", "100", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [s for s in scores(tmp_path / "runs" / "a") if s["metric"] == "backdoor_share"]
    assert [line["round"] for line in lines] == [0, 2]
    for line in lines:
        assert line["floor"] == 0.0 and 0.0 <= line["value"] <= 1.0 and line["samples"] == 100
