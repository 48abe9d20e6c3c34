"""Whole jobs around scores: late ones in training, patience, evaluate, copies, other formats."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from whole_jobs import SMALL, copy_without_last_checkpoint, lines, lines_but_for_time, run

from fedgan_mpi.__main__ import main
from fedgan_mpi.files import write_complete


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("scores")
    done = run(
        3, "--run.name", "a", "--training.rounds", "10", *SMALL[:4], "--evaluation.every", "2",
        "--evaluation.metrics", '["frechet","classes","prdc"]', "--evaluation.samples", "200",
        "--checkpoint.every", "4", "--record.tensorboard", "true", "--record.grid_every", "3",
        "--model.conditional", "true", cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "a"


def scores(run_directory: Path) -> list[dict]:
    return [line for line in lines(run_directory) if "metric" in line]


def test_scores_are_told_a_round_late_but_of_their_round(trained):
    order = [(line["round"], "metric" in line) for line in lines(trained)]
    told = [round for round, score in dict.fromkeys(order) if score]
    assert told == [0, 2, 4, 6, 8, 10]
    assert order.index((2, True)) == order.index((3, False)) + 1
    assert order.index((10, True)) == order.index((10, False)) + 1
    names = [line["metric"].split("-")[0] for line in scores(trained) if line["round"] == 4]
    assert names[0] == "frechet_classifier_distance"
    pairs = ("precision", "recall", "density", "coverage")
    assert names[3:] == [f"{name}_classifier" for name in pairs]
    grids = [path.stem for path in sorted((trained / "samples").iterdir())]
    assert grids == [f"round_{t:06d}" for t in (0, 2, 3, 4, 6, 8, 9, 10)]
    with Image.open(trained / "training.gif") as film:
        assert film.n_frames == 8


def test_a_run_killed_while_a_score_was_pending_tells_the_same(trained):
    """The checkpoint of round 8 was written between that round and its score."""
    cut = trained.with_name("cut")
    copy_without_last_checkpoint(trained, cut)
    (cut / "generator.safetensors").unlink()
    done = run(3, "--resume", "runs/cut", cwd=trained.parents[1])
    assert done.returncode == 0, done.stderr

    assert lines_but_for_time(cut) == lines_but_for_time(trained)
    for name in ("generator.safetensors", "generator_best.safetensors", "generator_best.json"):
        assert (cut / name).read_bytes() == (trained / name).read_bytes()


def test_tensorboard_has_the_same_numbers(trained):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = reader.EventAccumulator(str(trained / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    rounds = [line for line in lines(trained) if "metric" not in line]
    read = {event.step: event.value for event in board.Scalars("loss/d_loss")}
    assert read == {line["round"]: np.float32(line["d_loss"]) for line in rounds}
    name = scores(trained)[0]["metric"]
    assert [event.step for event in board.Scalars(f"score/{name}")] == [0, 2, 4, 6, 8, 10]
    assert [image.step for image in board.Images("samples")] == [0, 2, 3, 4, 6, 8, 9, 10]


def evaluation(run_directory: Path) -> list[dict]:
    text = (run_directory / "evaluation.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_evaluate_gives_on_any_ranks_what_training_told(trained):
    several, alone = trained.with_name("several"), trained.with_name("alone")
    for copy in (several, alone):
        shutil.copytree(trained, copy)
    shutil.rmtree(alone / "shards" / ".statistics")
    for ranks, copy in ((3, several), (1, alone)):
        done = run(ranks, "evaluate", f"runs/{copy.name}", cwd=trained.parents[1])
        assert done.returncode == 0, done.stderr
    mine, other = evaluation(several), evaluation(alone)
    assert {line["of"]["generator"] for line in mine} == {
        "checkpoints/round_000008", "checkpoints/round_000010", "generator.safetensors",
        "generator_best.safetensors",
    }  # fmt: skip
    for line, twin in zip(mine, other, strict=True):
        assert line["of"] == twin["of"] and line["value"] == pytest.approx(twin["value"], rel=1e-6)
    for line in scores(trained):
        if line["round"] in (8, 10):
            name = f"checkpoints/round_{line['round']:06d}"
            (same,) = [
                each for each in mine
                if each["of"]["generator"] == name and each["metric"] == line["metric"]
            ]  # fmt: skip
            assert same["value"] == pytest.approx(line["value"], rel=1e-6)
            assert same["floor"] == pytest.approx(line["floor"], rel=1e-6)

    # What stands there is not measured again; what was cut off is.
    doctored = [{**mine[0], "value": 12345.0}, *mine[1:-1]]
    text = "".join(json.dumps(line) + "\n" for line in doctored if line["of"] != mine[-1]["of"])
    write_complete(several / "evaluation.jsonl", text.encode())
    done = run(2, "evaluate", "runs/several", cwd=trained.parents[1])
    assert done.returncode == 0 and "12345" in done.stdout.replace("1.2345e+04", "12345")
    again = evaluation(several)
    assert again[0]["value"] == 12345 and len(again) == len(mine)


def test_copies_of_training_images_are_found_on_their_device(trained):
    """Distances of held-out images equal those of a plain search through all shards."""
    cwd = trained.parents[1]
    done = run(3, "neighbours", "runs/a", "--count", "5", "--show-images", cwd=cwd)
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "neighbours.json").read_text())

    import torch

    from fedgan_mpi.data import Manifest, read_shard, shard_name
    from fedgan_mpi.evaluation.features import read_extractor

    manifest = Manifest.read(trained / "shards")
    network = read_extractor(trained / "shards" / str(manifest.features))

    def features(path: Path) -> np.ndarray:
        images = read_shard(path, image_shape=manifest.image_shape).images
        with torch.no_grad():
            return network.features(torch.from_numpy(np.asarray(images))).double().numpy()

    heldout = features(trained / "shards" / "heldout.h5")
    devices = [features(trained / "shards" / shard_name(k)) for k in range(1, 9)]
    distances = [
        [np.linalg.norm(shard - point, axis=1).min() for shard in devices] for point in heldout
    ]
    expected = np.min(distances, axis=1)
    assert np.allclose(found["distance_of_heldout_images"], expected, rtol=1e-4)
    assert found["close_below"] == pytest.approx(np.quantile(expected, 0.05), rel=1e-4)
    assert len(found["distance"]) == 5 and set(found["device"]) <= set(range(1, 9))
    close = np.array(found["distance"]) < found["close_below"]
    assert found["share_close"] == close.mean()
    with Image.open(trained / "neighbours.png") as picture:
        with_originals = picture.size
    done = run(1, "neighbours", "runs/a", "--count", "5", cwd=cwd)
    assert done.returncode == 0 and json.loads((trained / "neighbours.json").read_text()) == found
    with Image.open(trained / "neighbours.png") as picture:
        assert picture.size[0] < with_originals[0]


def test_pictures_and_other_formats_come_from_the_same_generator(trained, tmp_path, capsys):
    def draw(*flags: str) -> np.ndarray:
        out = tmp_path / "x.png"
        assert main(["sample", str(trained), f"--out={out}", *flags]) == 0
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
    assert main(["export", str(trained), "--format=torchexport", f"--out={out}"]) == 0
    program = torch.export.load(out).module()
    from fedgan_mpi.run.generator_file import load

    z, classes = torch.randn(3, 8), torch.eye(10)[:3]
    with torch.no_grad():
        assert torch.allclose(program(z, classes), load(trained).network(z, classes), atol=1e-5)
    assert main(["export", str(trained), "--format=onnx", "--out=/nowhere/g.onnx"]) == 1
    assert "/nowhere is no directory" in capsys.readouterr().err
    pytest.importorskip("onnxruntime")
    assert main(["export", str(trained), "--format=onnx", f"--out={tmp_path / 'g.onnx'}"]) == 0
    assert "the same images" in capsys.readouterr().out
    for name in ("generator", "generator_best"):
        for suffix in (".json", ".safetensors"):
            shutil.copy(trained / f"{name}{suffix}", tmp_path)
    assert main(["export", str(tmp_path), "--format=torchexport"]) == 0
    assert (tmp_path / "generator_best.pt2").exists()  # named after the one it is
    assert not (tmp_path / "generator.pt2").exists()


def test_a_generator_that_draws_something_else_is_not_exported(trained, tmp_path, monkeypatch):
    from fedgan_mpi.run import exporters as convert

    original = convert._torchexport
    monkeypatch.setattr(convert, "_torchexport", lambda *given: original(*given) + 0.01)
    assert main(["export", str(trained), "--format=torchexport", f"--out={tmp_path / 'g'}"]) == 1
    assert list(tmp_path.iterdir()) == []
