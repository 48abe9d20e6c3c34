"""The command `score` on pictures, against torch-fidelity on the same features; its refusals."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import oracle_scores
import pytest
from mpi4py import MPI
from PIL import Image

from fedgan_mpi import plugins
from fedgan_mpi.comm.link import Link
from fedgan_mpi.errors import AgreedError
from fedgan_mpi.evaluation.metrics import Metric
from fedgan_mpi.evaluation.real_images import pooled_stats
from fedgan_mpi.score import image_sets
from fedgan_mpi.score.command import score
from fedgan_mpi.training.api import to_config
from fedgan_mpi.training.digits import write_digits

EXTRACTOR = f"{__file__}:projection"


def projection(image_shape: tuple[int, int, int]):
    """A linear map of the pixels to eight numbers."""
    from torch import nn

    layers = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(image_shape)), 8))

    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images):
            return self.layers(images.float() / 255)

    return Projection()


def weights(image_shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The parameters of the projection, as the program seeds them."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = projection(image_shape).layers[1]
    return linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()


def pictures(count: int, seed: int, shape: tuple[int, ...] = (6, 10, 3)) -> np.ndarray:
    """Smooth pictures, (count, H, W, 3)."""
    stream = np.random.default_rng(seed)
    light = stream.uniform(0, 1, (count, 1, 1, 1))
    return (255 * (0.7 * light + 0.3 * stream.uniform(size=(count, *shape)))).astype(np.uint8)


def write(folder: Path, images: np.ndarray) -> Path:
    """Write PNG files into two folders below `folder`."""
    for n, image in enumerate(images):
        path = folder / f"part{n % 2}" / f"{n:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def features(images: np.ndarray) -> np.ndarray:
    matrix, bias = weights((3, *images.shape[1:3]))
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1) / 255 @ matrix.T + bias


@pytest.mark.mpi(min_size=3)
def test_folders_have_torch_fidelitys_distance(comm, tmp_path):
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    import torch

    link = Link(comm)
    one, two = pictures(700, 1), pictures(650, 2) // 2
    out = tmp_path / "scores.json"
    if link.is_server:
        write(tmp_path / "one", one)
        write(tmp_path / "two", two)
    a, b = comm.bcast((tmp_path / "one", tmp_path / "two"))
    score(link, a, b, metrics=("frechet", "kid", "prdc"), extractor=EXTRACTOR, out=out)
    if not link.is_server:
        return
    table = json.loads(out.read_text())
    values = {name.partition("_projection")[0]: value for name, value in table["values"].items()}
    assert table["images"] == [700, 650]
    statistics = [
        metric.fid_features_to_statistics(torch.from_numpy(features(each))) for each in (one, two)
    ]
    expected = metric.fid_statistics_to_metric(*statistics, verbose=False)
    expected = expected["frechet_inception_distance"]
    assert values["frechet"] == pytest.approx(expected, rel=1e-5)
    plain = oracle_scores.prdc(features(two)[:60], features(one)[:60], k=5)
    with_few = tmp_path / "few.json"
    score(
        Link(MPI.COMM_SELF), a, b, samples=60, metrics=("frechet", "prdc"), extractor=EXTRACTOR,
        out=with_few,
    )  # fmt: skip
    values = json.loads(with_few.read_text())["values"]
    # The first 60 pictures in the order of their names, which is that of their folders.
    order = [*range(0, 700, 2), *range(1, 700, 2)]
    firsts = [features(each[[n for n in order if n < len(each)][:60]]) for each in (two, one)]
    for name, value in oracle_scores.prdc(*firsts, k=5).items():
        (found,) = (each for key, each in values.items() if key.startswith(f"{name}_"))
        assert found == pytest.approx(value, abs=1e-9)
    assert plain  # other pictures give other numbers
    assert any(
        not np.isclose(plain[name], value)
        for name, value in oracle_scores.prdc(*firsts, k=5).items()
    )


class Count(Metric):
    """The number of generated images."""

    def compute(self, fake, real, link):
        return {"count": fake.sums.count}


@pytest.mark.mpi(min_size=3)
def test_a_metric_that_the_server_has_parsed_is_used_on_all_ranks(comm, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_allowed", set())
    link, out = Link(comm), tmp_path / "scores.json"
    if link.is_server:
        write(tmp_path / "one", pictures(12, 1))
        plugins.allow([f"{__file__}:Count"])  # as the command line does
    path = comm.bcast(tmp_path / "one")
    metrics = ("frechet", f"{__file__}:Count")
    score(link, path, path, metrics=metrics, extractor=EXTRACTOR, out=out)
    if link.is_server:
        values = json.loads(out.read_text())["values"]
        assert [value for name, value in values.items() if name.startswith("count")] == [12]


@pytest.mark.parametrize(("metric", "rows"), [("kid_federated", 0), ("kid", 50)])
def test_features_of_devices_are_sent_only_if_a_metric_needs_them(
    tmp_path, monkeypatch, metric, rows
):
    config = to_config({"data": {"devices": 2}})
    write_digits(config, tmp_path / "shards")
    gray = write(tmp_path / "gray", pictures(50, 0, (16, 16, 3))[..., 0])
    found = []

    def recorded(*args, **kwargs):
        found.append(pooled_stats(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(image_sets, "pooled_stats", recorded)
    score(Link(MPI.COMM_SELF), gray, tmp_path / "shards", metrics=("frechet", metric))
    (real,) = found
    assert len(real.per_extractor[0].rows) == rows
    assert len(real.per_extractor[0].own) == (2 if metric == "kid_federated" else 0)


def refusal(a: Path, b: Path, **options) -> str:
    with pytest.raises(AgreedError) as raised:
        score(Link(MPI.COMM_SELF), a, b, **{"extractor": EXTRACTOR, **options})
    return str(raised.value)


def test_wrong_sets_are_refused_in_a_sentence(tmp_path):
    good = write(tmp_path / "good", pictures(12, 0))
    assert "missing does not exist" in refusal(good, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in refusal(tmp_path / "empty", good)

    mixed = write(tmp_path / "mixed", pictures(4, 0))
    Image.new("L", (10, 6)).save(mixed / "part0" / "gray.png")
    assert "gray.png has 6×10 pixels and 1 channels, but part0/0000.png" in refusal(mixed, good)

    damaged = write(tmp_path / "damaged", pictures(4, 0))
    (damaged / "part1" / "0003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "part1/0003.png" in refusal(good, damaged)

    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(np.full((6, 10), 4000, np.uint16)).save(deep / "a.png")
    assert "a.png has more than 8 bits" in refusal(deep, good)

    other = write(tmp_path / "other", pictures(4, 0, (6, 12, 3)))
    message = refusal(good, other)
    assert "other has images of the shape (3, 6, 12)" in message and "(3, 6, 10)" in message

    assert "--samples is 13, but" in refusal(good, good, samples=13)
    assert "good has 12 images" in refusal(good, good, samples=13)
    few = write(tmp_path / "few", pictures(5, 0))
    assert "at least 6" in refusal(few, good, metrics=("frechet", "prdc"))
    message = refusal(good, good, metrics=("frechet", "kid_federated"))
    assert "has a score of devices, but" in message and "no directory of shards" in message
    message = refusal(good, good, metrics=("frechet", "per_class"))
    assert "a score of single classes, but the shards have no labels" in message
    assert "has no feature extractor" in refusal(good, good, extractor="shards")


def test_an_archive_is_a_folder_and_equal_sets_have_distance_zero(tmp_path, capsys):
    folder = write(tmp_path / "pictures", pictures(40, 0))
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, path.relative_to(folder))
    score(Link(MPI.COMM_SELF), folder, archive, extractor=EXTRACTOR)
    line = capsys.readouterr().out.splitlines()[-1]
    assert abs(float(line.split()[-1])) < 1e-9
