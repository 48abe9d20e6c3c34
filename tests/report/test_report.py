"""What reports say of runs whose numbers are made up here, and which runs they refuse."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

from fedgan_mpi.cli.commands import parse
from fedgan_mpi.cli.parser import config_table
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.page import write_comparison, write_report
from fedgan_mpi.report.watch import describe, sparkline
from fedgan_mpi.run.image_grids import write_film, write_grid


def make_run(
    path: Path,
    scores: dict[int, float],
    *flags: str,
    samples: int = 100,
    metric: str = "frechet_classifier_distance-12345678",
    shards: str = "a" * 64,
) -> Path:
    """A run of 40 rounds, 2 s and 1 MB down and 0.5 MB up each; scores by round."""
    (path / "samples").mkdir(parents=True)
    config = parse([*flags, f"--run.name={path.name}", "--training.rounds=40"]).config
    table = {**config_table(config), "provenance": {"shards_sha256": shards}}
    (path / "config.toml").write_text(tomli_w.dumps(table))
    lines = []
    for t in range(41):
        if t:
            seconds = {f"seconds_{part}": 0.5 for part in ("downlink", "local", "uplink", "server")}
            cost = {"seconds": 2.0, **seconds, "bytes_down": 1_000_000, "bytes_up": 500_000}
            present = {"participants": [1, 2, 3]}
            lines.append({"round": t, **present, "d_loss": 1 + t / 100, "g_loss": None, **cost})
        if t in scores:
            score = {"round": t, "value": scores[t], "floor": 3.0, "samples": samples}
            lines.append({"metric": metric, **score})
            lines.append({"metric": "classes_covered", **score, "value": 7.0})
            pixels = np.full((4, 1, 8, 8), t, np.uint8)
            write_grid(path / "samples" / f"round_{t:06d}.png", pixels)
    (path / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    fedgan = "--algorithm.name=fedgan"
    return [
        make_run(tmp_path / "s0", {0: 100, 20: 30, 40: 10}),
        make_run(tmp_path / "s1", {0: 100, 20: 14, 40: 20}, "--run.seed=1"),
        make_run(tmp_path / "f0", {0: 100, 20: 80, 40: 50}, fedgan),
    ]


def test_costs_to_the_target_are_those_of_the_first_score_at_it(runs, tmp_path):
    ren, fedgan = write_comparison(runs, tmp_path / "out")
    assert ren["configuration"] == "ren serial" and fedgan["configuration"] == "fedgan"
    assert ren["seeds"] == "2" and fedgan["seeds"] == "1"
    assert ren["final"] == "15 ± 7.07" and ren["best"] == "12 ± 2.83"
    # The target is fedgan's best, 50: the others reach it at round 20, after 40 s and 30 MB.
    assert ren["rounds to target"] == "20 ± 0" and ren["seconds to target"] == "40 ± 0"
    assert ren["MB to target"] == "30 ± 0" and fedgan["MB to target"] == "60"
    ren, fedgan = write_comparison(runs, tmp_path / "out", target=12)
    assert ren["rounds to target"] == "40 [1/2]" and fedgan["rounds to target"] == "never [0/1]"
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [ren, fedgan]


def test_pages_need_nothing_from_outside(runs, tmp_path):
    write_comparison(runs, tmp_path / "out")
    write_film(runs[0] / "training.gif", sorted(runs[0].glob("samples/*.png")))
    write_report(runs[0])
    for page in (tmp_path / "out" / "index.html", runs[0] / "report.html"):
        text = page.read_text()
        assert "http" not in text and "<script" not in text and "<link" not in text
        sources = re.findall(r'src="([^"]{12})', text)
        assert len(sources) >= 3 and set(sources) <= {"data:image/p", "data:image/g"}
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.size[0] > 1000 and len(np.unique(np.asarray(picture))) > 20
    with Image.open(runs[0] / "training.gif") as film:
        assert film.n_frames == 3


def test_what_tells_namesakes_apart_is_in_the_label(tmp_path):
    one = make_run(tmp_path / "a", {0: 9, 40: 5})
    other = make_run(tmp_path / "b", {0: 9, 40: 4}, "--training.batch_size=16")
    labels = [row["configuration"] for row in write_comparison([one, other], tmp_path / "out")]
    assert labels == ["ren serial batch_size 32", "ren serial batch_size 16"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"samples": 99}, "/b cannot be compared with .*/s0: its images a score: 99, there: 100"),
        (
            {"metric": "frechet_pca_distance-0"},
            "/b cannot .* its metric .*: frechet_pca_distance-0",
        ),
        ({"shards": "b" * 64}, "/b cannot .* its shards: bbbbbbbbbbbb, there: aaaaaaaaaaaa"),
        ({}, "/b and .*/s0 have the same configuration and seed; leave one out"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(runs, tmp_path, change, sentence):
    other = make_run(tmp_path / "b", {0: 100, 40: 20}, **change)
    with pytest.raises(UserError, match=sentence):
        write_comparison([*runs, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[:-20], "is damaged or of an older version"),
        (lambda text: text.replace('"seconds"', '"time"'), "is damaged or of an older version"),
        (lambda text: text.split("\n", 4)[4], "is damaged or of an older version"),
        (lambda text: re.sub(r".*metric.*\n", "", text), "has no scores"),
        (None, "stats.jsonl cannot be read: No such file"),
    ],
)
def test_half_written_and_older_runs_are_refused(runs, tmp_path, damage, sentence):
    stats = runs[2] / "stats.jsonl"
    if damage is None:
        stats.unlink()
    else:
        stats.write_text(damage(stats.read_text()))
    with pytest.raises(UserError, match=sentence):
        write_comparison(runs, tmp_path / "out")


def test_a_directory_of_no_run_and_one_named_twice_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"samples/config.toml cannot be read"):
        write_comparison([runs[0] / "samples"], tmp_path / "out")
    with pytest.raises(UserError, match="s0"):
        write_comparison([runs[0], runs[0]], tmp_path / "out")


def test_watch_tells_of_a_run_in_the_middle_of_a_line(runs):
    path = runs[0] / "stats.jsonl"
    path.write_text(path.read_text() + '{"round": 41, "d_lo')
    head, losses, scores, about, grid = describe(runs[0], 60, ended=False)
    assert head.endswith("s0: round 40 of 60, 40 s to go")
    assert losses.startswith("d_loss  ▁") and losses.endswith("█  1.400")
    assert scores == "score   █▃▁  10"
    assert "best 10 after round 40; held-out real images 3" in about
    assert grid.endswith("round_000040.png")
    path.unlink()
    assert describe(runs[0], 60, ended=False)[0].endswith("round 0 of 60")


def test_sparklines_show_means_of_stretches():
    assert sparkline([1.0]) == "▁" and sparkline([5, 5]) == "▁▁"
    assert sparkline([0, 7, 3.4]) == "▁█▄"
    long = sparkline([0.0] * 480 + [1.0] * 480)
    assert long == "▁" * 24 + "█" * 24
